"""Any run again, from the overrides that it saved."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rundir import UserError, read_json
from rundir.files import (
    HYDRA_DIR,
    METRICS_FILE,
    OUTPUTS,
    RECORD_KEYS,
    RUN_FILE,
    UNSIGNED_KEYS,
    iter_metrics,
)
from sweeps import display, tasks
from sweeps.entry import compose
from sweeps.overrides import parse
from sweeps.single import carry_out, job_of


def rerun(run_dir: Path, extra: Sequence[str] = (), *, verify: bool = False) -> int:
    """Recompose a run from ``.hydra/overrides.yaml``, carry it out in a directory of its own.

    Prints how the recomposed config differs from the saved one before running: the present config
    files count, the saved ones show what changed since. The thread count is the recorded one, so
    that on the same machine the loss curve is the same to the bit.

    Args:
        run_dir: the run to repeat.
        extra: overrides applied on top.
        verify: afterwards compare the metrics; exit code 1 unless they are equal to the bit.
    """
    overrides = _last_of_each_key([*_saved_overrides(run_dir), *extra])
    composed = compose(overrides, **_saved_sources(run_dir))
    tasks.check(composed.resolved)
    record = read_json(run_dir / RUN_FILE) or {}
    for line in differences(record.get("config") or {}, composed.resolved):
        display.err.print(f"  {line}", markup=False)
    job = job_of(composed, _new_directory(composed.resolved, run_dir), rerun_of=str(run_dir))
    attempts = record.get("attempts") or [{}]
    code = carry_out(job, threads=attempts[-1].get("threads"))
    if code == 0 and verify:
        return _verify(run_dir, job.directory)
    return code


def _saved_overrides(run_dir: Path) -> list[str]:
    path = run_dir / HYDRA_DIR / "overrides.yaml"
    if not run_dir.is_dir():
        raise UserError(f"{run_dir} is not a directory")
    try:
        saved = _read_yaml(path)
    except FileNotFoundError:
        named = f"{HYDRA_DIR}/{path.name}"
        raise UserError(f"{run_dir} has no {named}; it is not a run directory") from None
    if not isinstance(saved, list) or not all(isinstance(text, str) for text in saved):
        raise UserError(f"{path} does not hold a list of overrides")
    return saved


def _saved_sources(run_dir: Path) -> dict[str, Any]:
    """Return the primary config and the further directories that the run was composed from."""
    try:
        hydra = (_read_yaml(run_dir / HYDRA_DIR / "hydra.yaml") or {}).get("hydra", {})
    except (FileNotFoundError, AttributeError):
        return {}
    sources = hydra.get("runtime", {}).get("config_sources", [])
    more = [source["path"] for source in sources if source.get("provider") == "command-line"]
    return {"config_name": hydra["job"]["config_name"], "more_dirs": more}


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        return None


def differences(
    saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    """Yield ``key: saved → now`` for what differs and can change the result."""
    for key in dict.fromkeys([*saved, *now]):
        if not prefix and key in UNSIGNED_KEYS:
            continue
        before, after = saved.get(key, "(absent)"), now.get(key, "(absent)")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key}: {before} → {after}"


def _last_of_each_key(overrides: Sequence[str]) -> list[str]:
    """Drop what a later override of the same key replaces; a ``+`` that added the key stays."""
    last: dict[str, str] = {}
    for text in overrides:
        key = parse(text).get_key_element().lstrip("+")
        adds = last.get(key, "").startswith("+") and not text.startswith("+")
        last[key] = f"+{text}" if adds else text
    return list(last.values())


def _new_directory(resolved: Mapping[str, Any], run_dir: Path) -> Path:
    """Create ``<outputs>/<group>/<name>-rerun-<n>`` for the first ``n`` that is free."""
    paths = resolved.get("paths") or {}
    parent = Path(paths.get("outputs") or OUTPUTS) / (paths.get("group") or "")
    name = run_dir.resolve().name
    for n in itertools.count(1):
        try:
            (parent / f"{name}-rerun-{n}").mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"can't write {parent}: {error.strerror}") from None
        break
    return parent / f"{name}-rerun-{n}"


def _verify(original: Path, repeated: Path) -> int:
    """Compare the metrics of two runs to the bit, apart from times; print the verdict."""
    before, after = _curves(original), _curves(repeated)
    for key in dict.fromkeys([*before, *after]):
        if before.get(key) != after.get(key):
            stream, step, name = key
            display.out.print(
                f"different at {stream} step {step}: {name} {before.get(key)} → {after.get(key)}"
            )
            return 1
    display.out.print(f"equal to the bit: {len(before)} values")
    return 0


_TIMED = ("step_time", "tokens_per_second")
"""Metrics that measure time and differ from run to run."""


def _curves(run_dir: Path) -> dict[tuple[str, int, str], str]:
    found = {}
    for record in iter_metrics(run_dir / METRICS_FILE):
        for name, value in record.items():
            if name not in (*RECORD_KEYS, *_TIMED):
                found[record["stream"], record["step"], name] = repr(value)
    return found
