"""What the commands of ``python -m analysis`` do with the store; they need pandas."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from analysis import MEASURE, tables
from analysis.conditions import holds
from analysis.outcomes import measured
from analysis.parquet import manifest
from analysis.parquet.problems import clip
from analysis.settings import Settings, settings_of
from rundir.errors import tell
from rundir.files import ENDED, State
from rundir.wording import count_of, duration

if TYPE_CHECKING:
    import argparse

WIDTH = 100
"""Columns of a table that does not go to a terminal, if that is enough."""
FOLDED = 20
"""Columns that a long text is folded into, at least."""


def table(options: argparse.Namespace) -> None:
    """Print the runs, the best first."""
    whole = tables.load_runs(options.sweep, options.store)
    settings = settings_of(whole)
    wide = tables.with_settings(whole, settings)
    frame = whole if options.all else wide
    everything = pd.concat([wide, whole[[n for n in whole.columns if n not in wide]]], axis=1)
    by, column = _sort_column(options, whole, settings)
    if by not in everything:
        everything, frame = (part.assign(**{by: column}) for part in (everything, frame))
    for condition in options.where:
        everything = everything[holds(condition, everything)]
    if everything.empty:
        tell(f"of {len(whole)} runs none matches")
    ordered = tables.order(everything, by)
    if options.by == MEASURE or _measured(by):
        ordered = pd.concat([ordered[_sound(ordered)], ordered[~_sound(ordered)]])
    _hint_age(options.store)
    if options.json:
        _print_json(ordered[list(frame.columns)])
    elif options.csv:
        _print_csv(ordered[list(frame.columns)], sys.stdout)
    else:
        shown = ordered.head(options.limit) if options.limit else ordered
        _print_table(shown, settings.telling, by if _measured(by) else MEASURE)
        if len(shown) < len(ordered):
            tell(f"the first {len(shown)} of {len(ordered)} runs; all of them with --limit 0")


def diff(options: argparse.Namespace) -> None:
    """Print what differs between two runs."""
    frame = tables.diff(options.run_a, options.run_b, options.store)
    first, second = frame.attrs["runs"]
    if options.json:
        columns = [frame[side].tolist() for side in ("a", "b")]
        values = [[None if _absent(v) else json.loads(v) for v in column] for column in columns]
        parsed = {key: list(pair) for key, *pair in zip(frame.index, *values, strict=True)}
        _say(json.dumps({"runs": [first, second], "differences": _valid(parsed)}, indent=1))
        return
    _say(f"a  {first}\nb  {second}")
    if frame.empty:
        _say("no difference in config, commit, Python or packages")
        return
    shown = _table()
    shown.add_column("key", overflow="fold", no_wrap=True)
    shown.add_column("a", overflow="fold")
    shown.add_column("b", overflow="fold")
    for cells in zip(frame.index, frame["a"].tolist(), frame["b"].tolist(), strict=True):
        shown.add_row(*(Text(_cell(value)) for value in cells))
    _show(shown)


def plot(options: argparse.Namespace) -> None:
    """Write the plots; print their paths."""
    from analysis.plots import save_plots

    _hint_age(options.store)
    for path in save_plots(options.sweep, options.out, options.store, options.format):
        _say(str(path))


def report(options: argparse.Namespace) -> None:
    """Write the page; print its path and size."""
    import webbrowser

    from analysis.report import write_report

    _hint_age(options.store)
    page = write_report(options.sweep, options.out, options.store)
    _say(f"{page.path}: {count_of(page.runs, 'run')}, {page}")
    if options.open and not webbrowser.open(page.path.resolve().as_uri()):
        tell(f"no browser was found; open {page.path} in one")


def _say(text: str) -> None:
    print(text)  # noqa: T201 - what the command is for


def _measured(name: str) -> str | None:
    """Return what a measure is of, e.g. ``val.loss``; None for other columns."""
    kind, _, what = name.partition(".")
    return what if (kind in {"final", "best"} or kind.startswith("at_")) and what else None


def _print_table(frame: pd.DataFrame, telling: list[str], by: str) -> None:
    """Print a row a run, with the final and best values of what ``by`` sums up."""
    shown, what = _table(), _measured(by) or ""
    named = not telling
    for name in telling or ["name"]:
        numeric = pd.api.types.is_numeric_dtype(frame[name])
        title = name.rpartition(".")[2]
        # Half a number would be another number.
        fold: Any = {"no_wrap": True} if numeric else {"overflow": "fold", "min_width": len(title)}
        shown.add_column(title, justify="right" if numeric else "left", **fold)
    shown.add_column("state", no_wrap=True)
    kind, title = by.partition(".")[0], what.replace(".", " ")
    kinds = {kind: f"{title} at {kind[3:]}"} if kind.startswith("at_") else {}
    kinds |= {"final": title, "best": "best"}
    for heading in ("step", *kinds.values(), "tokens/s", "time"):
        shown.add_column(heading, justify="right", no_wrap=True)
    reasons = frame["reason"].notna().any()
    if reasons:
        longest = int(frame["reason"].dropna().map(len).max())
        shown.add_column("reason", overflow="fold", min_width=min(longest, FOLDED))
    best = _leader(frame, by)
    for position, row in enumerate(frame.to_dict("records")):
        cells = [_cell(row[name]) for name in (["name"] if named else telling)]
        cells += [_cell(row["state"]), _steps(row)]
        cells += [_number(row.get(f"{kind}.{what}"), "{:.4f}") for kind in kinds]
        cells += [_number(row["tokens_per_second"], "{:,.0f}"), _duration(row["duration_s"])]
        cells += ["" if _absent(row["reason"]) else clip(row["reason"], 80)] if reasons else []
        style = "bold" if position == best else ""
        shown.add_row(*(Text(cell) for cell in cells), style=style)
    others = [heading for name, heading in kinds.items() if name != kind]
    _show(shown, ["time", "tokens/s", *reversed(others), "step"])


def _leader(frame: pd.DataFrame, by: str) -> int | None:
    if by not in frame:
        return None
    losses = frame[by].where(_sound(frame)).astype("float64").to_numpy()
    finite = [(loss, i) for i, loss in enumerate(losses) if math.isfinite(loss)]
    return min(finite)[1] if finite else None


def _sound(frame: pd.DataFrame) -> pd.Series:
    """Mark the runs whose last value is, or may become, a result: neither failed nor diverged."""
    bad = frame["state"].isin([str(state) for state in ENDED - {State.COMPLETED}])
    return ~(bad | frame["diverged"].fillna(value=False)).astype(bool)


def _table() -> Table:
    return Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)


def _show(shown: Table, spare: Sequence[str] = ()) -> None:
    """Print as wide as the terminal; no line ends in a space.

    Where there is none, ``WIDTH``, or as wide as it takes to cut no column that does not fold.

    Args:
        shown: the table.
        spare: headings of columns that a narrow terminal goes without, the first first.
    """
    if sys.stdout.isatty():
        console = Console()
        shown = _narrowed(shown, console.width, spare)
    else:
        console = Console(width=max(WIDTH, _width(shown.columns)))
    with console.capture() as captured:
        console.print(shown)
    _say("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _narrowed(shown: Table, width: int, spare: Sequence[str]) -> Table:
    """Return the table without as many of the spare columns as it takes to cut no other."""
    kept = list(shown.columns)
    for heading in spare:
        if _width(kept) <= width:
            break
        # Settings stand to the left, and one of them may have the same name.
        last = max(i for i, column in enumerate(kept) if column.header == heading)
        del kept[last]
    narrow = _table()
    for column in kept:
        narrow.add_column(
            column.header,
            justify=column.justify,
            overflow=column.overflow,
            no_wrap=column.no_wrap,
            min_width=column.min_width,
        )
    cells = [list(column.cells) for column in kept]
    for row, line in zip(shown.rows, zip(*cells, strict=True), strict=True):
        narrow.add_row(*line, style=row.style)
    return narrow


def _width(columns: Sequence[Column]) -> int:
    """Return how wide columns are together where no number is cut and no word folds early."""
    return sum(map(_least_width, columns)) + 2 * (len(columns) - 1)


def _least_width(column: Column) -> int:
    longest = max(len(str(cell)) for cell in (column.header, *column.cells))
    return (
        min(longest, max(column.min_width or 0, FOLDED)) if column.overflow == "fold" else longest
    )


def _hint_age(store: Path) -> None:
    hint = "refresh with: python -m analysis collect"
    tell(f"{store}: collected {ago(manifest.age_s(store))}; {hint}")


def ago(seconds: float) -> str:
    """Return an age in its largest whole unit: ``just now``, ``1 second ago``, ``3 days ago``."""
    units = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))
    size, unit = next(((s, u) for s, u in units if seconds >= s), (1, "second"))
    count = int(seconds / size)
    return f"{count_of(count, unit)} ago" if count > 0 else "just now"


def _sort_column(
    options: argparse.Namespace, table: pd.DataFrame, settings: Settings
) -> tuple[str, pd.Series]:
    if options.by == MEASURE and MEASURE not in table:
        return "run", table["run"]
    return measured(options.by, table, settings, options.sweep, options.store)


def _print_json(frame: pd.DataFrame) -> None:
    rows = frame.astype(object).to_dict("records")
    cells = [{k: None if _absent(v) else v for k, v in row.items()} for row in rows]
    _say(json.dumps(_valid(cells), indent=1))


def _print_csv(frame: pd.DataFrame, file: TextIO) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(frame.columns)
    for row in frame.astype(object).itertuples(index=False):
        writer.writerow("" if _absent(value) else value for value in row)


def _valid(value: Any) -> Any:
    """Return what strict JSON can hold: NaN and the infinities become texts."""
    if isinstance(value, dict):
        return {key: _valid(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_valid(child) for child in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _absent(value: Any) -> bool:
    return value is None or value is pd.NA


def _cell(value: Any) -> str:
    if _absent(value):
        return "-"
    return f"{value:g}" if isinstance(value, float) else clip(str(value))


def _number(value: Any, form: str) -> str:
    return "-" if _absent(value) else form.format(value)


def _steps(row: Mapping[Any, Any]) -> str:
    done, total = row["steps"], row["total_steps"]
    if _absent(done):
        return "-"
    return f"{done}" if _absent(total) or total == done else f"{done}/{total}"


def _duration(seconds: Any) -> str:
    return "-" if _absent(seconds) else duration(float(seconds))
