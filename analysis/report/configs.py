"""Every run's whole config on the page, for the comparison of any two of them.

Runs of a sweep share nearly all of their config: what all have in common stands once, and of the
rest each different value once a key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.tables import facts


def configs_of(table: pd.DataFrame) -> dict[str, Any]:
    """Return ``common`` and ``varying``: facts of the runs by dotted key, as JSON text.

    A key of ``varying`` has ``values``, and ``of``: for each run which of them, or -1 where it
    lacks the key. ``known`` says which runs have a config at all.
    """
    rows = [facts(row) for row in table.to_dict("records")]
    known = [isinstance(text, str) for text in table["config_json"].tolist()]
    keys = dict.fromkeys(key for row in rows for key in row)
    common: dict[str, str] = {}
    varying: dict[str, dict[str, Any]] = {}
    for key in keys:
        values = list(dict.fromkeys(row[key] for row in rows if key in row))
        if len(values) == 1 and all(key in row for row in rows):
            common[key] = values[0]
        else:
            places = {value: place for place, value in enumerate(values)}
            of = [places[row[key]] if key in row else -1 for row in rows]
            varying[key] = {"values": values, "of": of}
    return {"common": common, "varying": varying, "known": known}


def provenance_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return what the runs were made with and where: ``name``, and ``values`` with their counts."""
    facts = [
        ("commit", _commits(table)),
        ("Python", table["python"].tolist()),
        *_packages(table["packages"].tolist()),
        ("host", table["host"].tolist()),
        ("GPU", [_gpus(text) for text in table["gpus"].tolist()]),
        ("SLURM job", [_array(job) for job in table["job"].tolist()]),
    ]
    return [
        {"name": name, "values": found} for name, column in facts if (found := _counted(column))
    ]


def _commits(table: pd.DataFrame) -> list[str | None]:
    columns = (table[name].tolist() for name in ("git_sha", "git_dirty", "git_diff_sha256"))
    return [_commit(*row) for row in zip(*columns, strict=True)]


def _commit(sha: Any, dirty: Any, difference: Any) -> str | None:
    if not isinstance(sha, str):
        return None
    changed = (
        f" with uncommitted changes {str(difference)[:12]}" if isinstance(difference, str) else ""
    )
    return sha + (changed or (" with uncommitted changes" if dirty is True else ""))


def _packages(texts: Sequence[Any]) -> list[tuple[str, list[str | None]]]:
    rows: list[Mapping[str, Any]] = []
    for text in texts:
        value = json.loads(text) if isinstance(text, str) else {}
        rows.append(value if isinstance(value, dict) else {})
    names = sorted({str(name) for row in rows for name in row})
    return [
        (name, [None if row.get(name) is None else str(row[name]) for row in rows])
        for name in names
    ]


def _gpus(text: Any) -> str | None:
    names = json.loads(text) if isinstance(text, str) else []
    if not isinstance(names, list) or not names:
        return None
    return ", ".join(f"{names.count(n)} × {n}" for n in dict.fromkeys(map(str, names)))


def _array(job: Any) -> str | None:
    """Return the array that an element belongs to: one row a submission, not one a run."""
    return job.partition("_")[0] if isinstance(job, str) else None


def _counted(column: Sequence[str | None]) -> list[list[Any]]:
    """Return each value and how many runs have it, the most frequent first."""
    counts: dict[str, int] = {}
    for value in column:
        if isinstance(value, str):
            counts[value] = counts.get(value, 0) + 1
    return [[value, n] for value, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
