"""The store as pandas tables.

Every function reads Parquet and nothing else; none needs torch or Hydra. Numbers come as
Arrow-backed columns (``double[pyarrow]``, …), which keep two things apart that numpy confuses: NaN
is a value that was logged as not finite, ``<NA>`` one that was never logged.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from analysis.collecting.runrecord import leaves
from analysis.collecting.summary import higher_is_better
from analysis.lookup import find_column, find_run, resolve_sweep
from analysis.parquet import manifest as manifests
from analysis.parquet.columns import KEYS, settled_types
from analysis.parquet.manifest import RUNS
from analysis.parquet.parts import history_table, read_table
from analysis.settings import CONFIG, Settings, settings_of
from rundir.errors import UserError, unknown

REPLICATE = ("seed", "replicate")
RATES = ("lr", "learning_rate")
_ALWAYS = ("run", "sweep", "index", "name")
_PROVENANCE = ("git_sha", "git_diff_sha256", "python")
_SHOWN = (
    "state",
    "reason",
    "diverged",
    "attempt",
    "steps",
    "total_steps",
    "duration_s",
    "tokens_per_second",
)


def runs(
    sweep: str | None = None, store: Path | str = "store", all_columns: bool = False
) -> pd.DataFrame:
    """Return one row a run, also for runs that failed or have not started, sorted by run.

    By default a config value is a column only if it varies among the rows, under its shortest
    unambiguous name (``lr``); with ``all_columns`` every column has its full name
    (``config.optimizer.optimizer_params.lr``) and none is left out.

    Columns:
        run: text, path of the run directory from its root: the key of every table.
        sweep, index, name, signature, task: text, and the run's int64 number in its sweep.
        state: text: planned, pending, running, completed, failed, diverged, preempted, timeout,
            out_of_memory, node_fail, cancelled, lost; null for outputs that optsweep did not write.
        reason: text, why the run is in a bad state.
        diverged: bool, the state says so or the last loss is not finite.
        attempt, attempts, steps, total_steps, exit_code, threads: int64.
        duration_s: double, seconds that the last attempt took.
        tokens_per_second: double, median over the steps of the train stream.
        created_at, started_at, ended_at: double, Unix seconds.
        host, job, python, git_sha, git_diff_sha256, rerun_of, directory: text; git_dirty: bool.
        overrides, gpus, packages, config_json: JSON text; config_json is the whole config.
        final.<stream>.<metric>: last value logged, in the metric's unit; NaN where it diverged.
        best.<stream>.<metric>: lowest finite value (highest for accuracies and their like).
        best_step.<stream>.<metric>: int64, the first step that has it.

    Args:
        sweep: name of a sweep, or the path of its directory; every run by default.
        store: directory of the store.
        all_columns: see above.

    Raises:
        UserError: no store, an empty one, or an unknown sweep.
    """
    table = load_runs(sweep, store)
    if all_columns:
        return table
    return with_settings(table, settings_of(table))


def history(
    stream: str = "train",
    sweep: str | None = None,
    metrics: str | Sequence[str] | None = None,
    runs: Collection[str] | None = None,
    store: Path | str = "store",
) -> pd.DataFrame:
    """Return one row a run and step of one stream, grouped by run, steps ascending.

    Columns:
        run: category of the ids in :func:`runs`, to merge on.
        step: int64, optimizer steps done.
        t: double, Unix seconds at which it was logged.
        attempt: int64, the attempt that logged it.
        then the metrics, mostly double; NaN where not finite, null where not logged; JSON text
            where the chosen runs logged words and numbers under one name.

    Args:
        stream: ``train``, ``val`` or what else a task logs to.
        sweep: name of a sweep, or the path of its directory; every run by default.
        metrics: those to read, without t and attempt; all columns by default. Reading one metric
            costs about 10 ns a row.
        runs: ids of the runs to read; all by default.
        store: directory of the store.

    Raises:
        UserError: no store, or an unknown sweep, stream, metric or run.
    """
    store = Path(store)
    manifest = manifests.load(store)
    streams = [name.partition("/")[2] for name in manifest.schemas if name != RUNS]
    table = history_table(stream)
    if table not in manifest.schemas:
        raise unknown("stream", stream, streams)
    columns = _history_columns(list(manifest.schemas[table]), metrics, stream)
    chosen = None if runs is None else set(runs)
    if sweep is not None:
        members = set(load_runs(sweep, store)["run"])
        chosen = members if chosen is None else chosen & members
    kinds = manifest.schemas[table]
    if chosen is None:
        return _frame(settled_types(read_table(store, table, columns), kinds))
    sources = manifests.load(store, sources=True).sources
    buckets = {sources[run].bucket for run in chosen if run in sources}
    data = read_table(store, table, columns, buckets)
    mask = pc.is_in(data.column("run").cast(pa.string()), pa.array(sorted(chosen), pa.string()))
    frame: pd.DataFrame = _frame(settled_types(data.filter(mask), kinds))
    frame["run"] = frame["run"].cat.remove_unused_categories()
    return frame


def best(
    by: str = "val.loss",
    sweep: str | None = None,
    per: str | None = None,
    store: Path | str = "store",
) -> pd.DataFrame:
    """Return the runs table sorted by their best value of a metric, runs without one last.

    Args:
        by: ``<stream>.<metric>``. Lower is better, except for accuracies, throughput and the like.
        sweep: name of a sweep, or the path of its directory; every run by default.
        per: a column, e.g. ``optimizer``: only the best run for each of its values.
        store: directory of the store.

    Raises:
        UserError: no store, or an unknown sweep, metric or column.
    """
    table = runs(sweep, store)
    legal = [name[len("best.") :] for name in table.columns if name.startswith("best.")]
    if by not in legal:
        raise unknown("metric", by, legal)
    ordered = order(table, f"best.{by}")
    if per is None:
        return ordered
    return _numbered(ordered.drop_duplicates(find_column(per, ordered)))


def diff(run_a: str, run_b: str, store: Path | str = "store") -> pd.DataFrame:
    """Return what differs between two runs: config values, commit, Python and package versions.

    Columns ``a`` and ``b`` hold JSON text, null where a run lacks the key; the index is the dotted
    key. ``attrs["runs"]`` holds the two run ids.

    Args:
        run_a: run id, run directory, name, or the unambiguous end of one.
        run_b: the other.
        store: directory of the store.

    Raises:
        UserError: no store, an unknown run, or a name of several.
    """
    table = load_runs(None, store)
    rows = [find_run(run, table) for run in (run_a, run_b)]
    flat = [facts(row) for row in rows]
    keys = [k for k in dict.fromkeys([*flat[0], *flat[1]]) if flat[0].get(k) != flat[1].get(k)]
    values = {side: [f.get(k) for k in keys] for side, f in zip("ab", flat, strict=True)}
    texts = pd.ArrowDtype(pa.string())
    columns = {side: pd.Series(column, dtype=texts) for side, column in values.items()}
    index = pd.Index(keys, name="key", dtype="object")
    frame: pd.DataFrame = pd.DataFrame(columns).set_index(index)
    frame.attrs["runs"] = tuple(str(row["run"]) for row in rows)
    return frame


def load_runs(sweep: str | None, store: Path | str) -> pd.DataFrame:
    """Return the runs table with every column, of one sweep or of all.

    Raises:
        UserError: no store, an empty one, or an unknown sweep.
    """
    store = Path(store)
    table = read_table(store, RUNS)
    if table.num_rows == 0:
        raise UserError(f"store = {store}; holds no runs; run: python -m analysis collect")
    table = table.set_column(0, "run", table.column("run").cast(pa.string()))
    if sweep is not None:
        known = pc.unique(table.column("sweep").drop_null()).to_pylist()
        table = table.filter(pc.equal(table.column("sweep"), resolve_sweep(sweep, known)))
    kinds = manifests.load(store).schemas[RUNS]
    return _frame(settled_types(table.sort_by("run"), kinds))


def with_settings(table: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """Return the runs table with settings in place of config columns, as :func:`runs` does."""
    summaries = [n for n in table.columns if n.startswith(("final.", "best.", "best_step."))]
    rest = [*_SHOWN, *sorted(summaries)]
    pieces = [table[list(_ALWAYS)], settings.columns, table[rest]]
    whole: pd.DataFrame = pd.concat(pieces, axis=1)
    return whole


def order(table: pd.DataFrame, by: str, *, descending: bool | None = None) -> pd.DataFrame:
    """Sort by a column, best first; NaN comes after every number, null after NaN."""
    key = table[by]
    down = higher_is_better(by) if descending is None else descending
    if pd.api.types.is_numeric_dtype(key):
        key = floats(key)
        down = down and by.startswith(("final.", "best.")) if descending is None else down
    values = key.astype(object).where(key.notna(), None)
    absent = table[by].isna()
    numbers = pd.Series(values, index=table.index)
    known = numbers[numbers.notna()].sort_values(ascending=not down, kind="stable").index
    broken = table.index[~absent & numbers.isna()]
    return _numbered(table.loc[[*known, *broken, *table.index[absent]]])


def rate_column(table: pd.DataFrame) -> pd.Series:
    """Return the learning rate of each run: the config value called ``lr``.

    Raises:
        UserError: no run has one.
    """
    paths = [n for n in table.columns if n.startswith(CONFIG) and n.rsplit(".", 1)[-1] in RATES]
    if not paths:
        raise UserError("column = lr; must be in the config of the runs; it is in none")
    varying = [name for name in paths if len(table[name].dropna().unique()) > 1]
    rate: pd.Series = table[(varying or paths)[0]]
    return rate


def _numbered(table: pd.DataFrame) -> pd.DataFrame:
    numbered: pd.DataFrame = table.reset_index(drop=True)
    return numbered


def _history_columns(
    known: list[str], metrics: str | Sequence[str] | None, stream: str
) -> list[str]:
    if metrics is None:
        return known
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    for name in names:
        if name not in known:
            raise unknown("metric", name, [n for n in known if n not in KEYS], f"stream {stream}")
    return list(dict.fromkeys(["run", "step", *names]))


def _frame(table: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas(types_mapper=_pandas_type)
    return frame


def _pandas_type(kind: pa.DataType) -> pd.ArrowDtype | None:
    return None if pa.types.is_dictionary(kind) else pd.ArrowDtype(kind)


def floats(column: pd.Series) -> pd.Series:
    """Return numbers as float64; null becomes NaN."""
    return column.astype("double[pyarrow]").astype("float64")


def facts(row: Mapping[Any, Any]) -> dict[str, str]:
    """Return config, commit, Python and packages of a run by dotted key, as JSON texts."""
    facts: dict[str, str] = {}
    if isinstance(row["config_json"], str):
        facts |= _json_leaves(row["config_json"])
    for name in _PROVENANCE:
        if isinstance(row[name], str):
            facts[name] = json.dumps(row[name])
    if isinstance(row["packages"], str):
        facts |= _json_leaves(row["packages"], "packages.")
    return facts


def _json_leaves(text: str, prefix: str = "") -> dict[str, str]:
    return {name: json.dumps(value) for name, value in leaves(json.loads(text), prefix)}
