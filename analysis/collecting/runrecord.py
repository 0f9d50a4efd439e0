"""run.json, status.json and Hydra's snapshot → one row of the runs table."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import yaml

from analysis.collecting.discovery import CONFIG_FILE, OVERRIDES_FILE, Found, hydra_files
from analysis.parquet.columns import INT64, Kind, json_text
from analysis.parquet.manifest import Stamp
from analysis.parquet.problems import Problem, clip
from rundir.files import RUN_FILE, SCHEMA_VERSION, STATUS_FILE, State

FIXED: dict[str, Kind] = {
    "run": "string",
    "directory": "string",
    "sweep": "string",
    "index": "int64",
    "name": "string",
    "signature": "string",
    "task": "string",
    "state": "string",
    "reason": "string",
    "diverged": "bool",
    "attempt": "int64",
    "attempts": "int64",
    "steps": "int64",
    "total_steps": "int64",
    "duration_s": "double",
    "tokens_per_second": "double",
    "created_at": "double",
    "started_at": "double",
    "ended_at": "double",
    "exit_code": "int64",
    "host": "string",
    "job": "string",
    "threads": "int64",
    "gpus": "json",
    "overrides": "json",
    "rerun_of": "string",
    "git_sha": "string",
    "git_dirty": "bool",
    "git_diff_sha256": "string",
    "python": "string",
    "packages": "json",
    "config_json": "json",
}
"""Columns that every runs table has, first and in this order; ``tables.runs`` documents them."""

_OF_STATUS = frozenset(
    {"state", "reason", "attempt", "steps", "total_steps", "ended_at", "exit_code"}
)

LARGEST_FILE = 16 << 20
LARGEST_PLAN = 1 << 30
"""A planned run takes about a kilobyte."""
MOST_NODES = 100_000
"""Values in one config; a YAML file of a few lines can unfold to billions through its aliases."""
DEEPEST = 64

_STATES = frozenset(str(state) for state in State)

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_ACCEPTED: dict[Kind, tuple[type, ...]] = {
    "string": (str,),
    "int64": (int,),
    "double": (float, int),
    "bool": (bool,),
}
_EXACTLY: dict[Kind, type] = {"string": str, "double": float, "bool": bool}
"""The one type that values of a kind usually have, and that needs no further look."""


class _RefusedError(Exception):
    """A source whose content cannot be taken; the message says why."""


UNTAKEN = (_RefusedError, OSError, ValueError, RecursionError, yaml.YAMLError)
"""What reading a source may raise."""


def read_run(found: Found) -> tuple[dict[str, Any], list[Problem]]:
    """Return the run's row without its summaries, and what was wrong with its files.

    Never raises for what a file holds: executes nothing, follows no link, and takes no config of
    more than ``MOST_NODES`` values.
    """
    problems: list[Problem] = []
    record = _source(found, RUN_FILE, json_object, problems) or {}
    status = _source(found, STATUS_FILE, json_object, problems) or {}
    if not isinstance(record.get("config"), dict):
        record |= _hydra_record(found, problems)
    row: dict[str, Any] = {"run": found.run, "directory": found.directory}
    row |= _identity(record, found) | _standing(record, status)
    row |= _provenance(record) | _configuration(record.get("config"))
    _check_fixed(row, found, problems)
    if row["state"] is not None and row["state"] not in _STATES:
        detail = clip(f"state = {row['state']}; no state of a run")
        problems.append(Problem(found.run, STATUS_FILE, None, "status", detail))
    return row, problems


def _check_fixed(row: dict[str, Any], found: Found, problems: list[Problem]) -> None:
    for name, kind in FIXED.items():
        value = row.setdefault(name, None)
        if value is None or type(value) is _EXACTLY.get(kind):
            continue
        if kind == "json":
            row[name] = json_text(value)
        elif not _fits(value, _ACCEPTED[kind]):
            source = STATUS_FILE if name in _OF_STATUS else RUN_FILE
            detail = clip(f"{name} = {value!r}; must be {kind}")
            problems.append(Problem(found.run, source, None, "status", detail))
            row[name] = None


def planned_row(
    run: str, directory: str, sweep: object, planned: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the row of a run that its sweep's plan names and that has no directory yet."""
    row: dict[str, Any] = {"run": run, "directory": directory, "state": str(State.PLANNED)}
    row["sweep"] = sweep if isinstance(sweep, str) else None
    for name, kind in (("index", "int64"), ("name", "string"), ("signature", "string")):
        value = planned.get(name)
        row[name] = value if _fits(value, _ACCEPTED[kind]) else None
    overrides = _texts(planned.get("overrides"))
    row["overrides"] = None if overrides is None else json_text(overrides)
    varying = planned.get("varying")
    if isinstance(varying, dict):
        # A key without a dot is Hydra's choice of a group; the overrides tell of that.
        row |= {f"config.{key}": value for key, value in varying.items() if "." in key}
    return row


def read_plan(path: str) -> dict[str, Any]:
    """Return the plan of a sweep.

    Raises:
        ValueError: it cannot be read or is no plan.
    """
    try:
        plan = json_object(read_bytes(path, most=LARGEST_PLAN))
    except UNTAKEN as error:
        raise ValueError(reason_of(error)) from None
    if not isinstance(plan.get("runs"), list):
        raise ValueError("holds no list of runs")  # noqa: TRY004 - of a file, not of an argument
    return plan


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted key and value of all that is no mapping, and of the empty mappings."""
    found: list[tuple[str, Any]] = []
    _collect_leaves(node, prefix, found)
    return iter(found)


def _collect_leaves(node: Mapping[str, Any], prefix: str, found: list[tuple[str, Any]]) -> None:
    """Cost 20 us for a config; passing each leaf up through generators took twice that."""
    for key, value in node.items():
        if value and isinstance(value, dict):
            _collect_leaves(value, f"{prefix}{key}.", found)
        else:
            found.append((f"{prefix}{key}", value))


def _identity(record: dict[str, Any], found: Found) -> dict[str, Any]:
    row = {key: record.get(key) for key in ("index", "signature", "task", "rerun_of")}
    row["name"] = record.get("name") or os.path.basename(found.directory)
    row["sweep"] = record.get("sweep") if "sweep" in record else found.hydra_sweep
    row["created_at"] = record.get("created_at")
    return row


def _standing(record: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
    attempts = record.get("attempts")
    attempts = [a for a in attempts if isinstance(a, dict)] if isinstance(attempts, list) else []
    last = attempts[-1] if attempts else {}
    slurm = last.get("slurm") if isinstance(last.get("slurm"), dict) else {}
    row = {
        key: status.get(key)
        for key in ("state", "reason", "attempt", "total_steps", "ended_at", "exit_code")
    }
    row["steps"] = status.get("step")
    row["attempts"] = len(attempts) or None
    for key in ("host", "job", "started_at"):
        row[key] = status.get(key) or last.get(key)
    row["job"] = row["job"] or (slurm or {}).get("job_id")
    row["job"] = None if row["job"] is None else str(row["job"])
    row["threads"], row["gpus"] = last.get("threads"), last.get("gpus")
    start, end = row["started_at"], status.get("ended_at") or status.get("updated_at")
    if isinstance(start, (int, float)) and isinstance(end, (int, float)):
        row["duration_s"] = float(end - start)
    return row


def _provenance(record: dict[str, Any]) -> dict[str, Any]:
    git = record.get("git") if isinstance(record.get("git"), dict) else {}
    row = {f"git_{key}": (git or {}).get(key) for key in ("sha", "dirty", "diff_sha256")}
    row["python"], row["packages"] = record.get("python"), record.get("packages")
    row["overrides"] = _texts(record.get("overrides"))
    return row


def _configuration(config: object) -> dict[str, Any]:
    if not isinstance(config, dict):
        return {"config_json": None}
    row: dict[str, Any] = {"config_json": config}
    for name, value in leaves(config, "config."):
        row.setdefault(name, value)
    return row


def _plain(value: Any) -> Any:
    """Return a copy with text keys, as JSON has them; YAML allows numbers and dates."""
    if isinstance(value, dict):
        return {str(key): _plain(child) for key, child in value.items()}
    return [_plain(child) for child in value] if isinstance(value, list) else value


def _texts(value: object) -> list[str] | None:
    return [str(item) for item in value] if isinstance(value, list) else None


def _hydra_record(found: Found, problems: list[Problem]) -> dict[str, Any]:
    """Return what Hydra's own files say, with interpolations as they stand there."""
    record: dict[str, Any] = {}
    found = replace(found, files=found.files | hydra_files(found.directory))
    if CONFIG_FILE in found.files:
        config = _source(found, CONFIG_FILE, _yaml, problems)
        if isinstance(config, dict):
            record["config"] = _plain(config)
        elif config is not None:
            detail = "holds no mapping"
            problems.append(Problem(found.run, CONFIG_FILE, None, "config", detail))
    elif RUN_FILE not in found.files:
        detail = f"has neither {RUN_FILE} nor {CONFIG_FILE}: its configuration is unknown"
        problems.append(Problem(found.run, None, None, "config", detail))
    overrides = _source(found, OVERRIDES_FILE, _yaml, problems)
    if isinstance(overrides, list):
        record["overrides"] = overrides
    return record


def _source(found: Found, name: str, parse: Any, problems: list[Problem]) -> Any:
    if name not in found.files:
        return None
    try:
        content = read_bytes(f"{found.directory}/{name}", found.files[name])
        value = parse(content)
        if parse is not json_object or not _is_harmless(content):
            _guard(value)
    except UNTAKEN as error:
        kind = "unreadable" if isinstance(error, OSError) else "config"
        problems.append(Problem(found.run, name, None, kind, reason_of(error)))
        return None
    if isinstance(value, dict) and name in {RUN_FILE, STATUS_FILE}:
        version = value.get("version", SCHEMA_VERSION)
        if version != SCHEMA_VERSION:
            detail = clip(f"version = {version!r}; must be {SCHEMA_VERSION}; read as far as known")
            problems.append(Problem(found.run, name, None, "config", detail))
    return value


def reason_of(error: Exception) -> str:
    """Return in words why a source could not be taken."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return clip(f"not JSON: {error}")
    if isinstance(error, yaml.YAMLError):
        return clip(f"not plain YAML: {error}")
    return clip(str(error) or type(error).__name__)


def read_bytes(path: str, stamp: Stamp = (0, 0), most: int = LARGEST_FILE) -> bytes:
    """Return what a regular file holds; raises one of UNTAKEN for a link and what is too large."""
    if stamp[0] < 0:
        raise _RefusedError("no regular file")
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb", buffering=0) as file:
        # Asked for 16 MB, Python sets them aside even for a file of a kilobyte.
        content = file.read(min(os.fstat(handle).st_size, most) + 1) or b""
    if len(content) > most:
        raise _RefusedError(f"larger than {most} bytes")
    return content


def json_object(content: bytes) -> dict[str, Any]:
    """Parse a JSON object; raises one of UNTAKEN for anything else."""
    value = json.loads(content.decode())
    if not isinstance(value, dict):
        raise _RefusedError("not a JSON object")
    return value


def _yaml(content: bytes) -> Any:
    return yaml.load(content, Loader=_Loader)  # noqa: S506 - CSafeLoader builds plain values only


def _is_harmless(content: bytes) -> bool:
    """Say of JSON, which has no aliases, that its length alone keeps it within the bounds."""
    return content.count(b"{") + content.count(b"[") <= DEEPEST and len(content) <= MOST_NODES


def _guard(value: object) -> None:
    """Refuse a value that is too large or too deep when unfolded, or that holds itself."""
    pending = [(value, 0)]
    seen = 0
    while pending:
        node, depth = pending.pop()
        seen += 1
        if seen > MOST_NODES:
            raise _RefusedError(f"more than {MOST_NODES} values")
        if depth > DEEPEST:
            raise _RefusedError("nested too deeply")
        if isinstance(node, dict):
            pending.extend((child, depth + 1) for child in node.values())
        elif isinstance(node, (list, tuple, set)):
            pending.extend((child, depth + 1) for child in node)


def _fits(value: object, accepted: tuple[type, ...]) -> bool:
    if isinstance(value, bool) or not isinstance(value, accepted):
        return isinstance(value, bool) and bool in accepted
    return not isinstance(value, int) or value in INT64
