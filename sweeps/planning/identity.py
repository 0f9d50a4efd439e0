"""What makes two runs the same run, and what a run is called."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rundir.files import UNSIGNED_KEYS

ENGINE_KEYS = frozenset({"task", "check", "paths", "cluster", "sweep", "dry_run"})
"""Top-level keys of the config that are the engine's; the task gets all others."""

SHORT_SIGNATURE = 6
"""Hex digits of the signature in a directory name; the whole signature is in run.json."""

MAX_NAME_BYTES = 120
"""Longest run name; file systems end at 255 bytes, and tools append suffixes."""


def task_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of the resolved config that the task gets."""
    return {key: value for key, value in config.items() if key not in ENGINE_KEYS}


def signature(config: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hex, of what determines the run's result.

    Numbers count by value: ``1``, ``1.0`` and ``1e0`` sign the same.
    """
    signed = {key: value for key, value in config.items() if key not in UNSIGNED_KEYS}
    text = json.dumps(_canonical(signed), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    return value


def run_name(varying: Mapping[str, object], signed: str, *, title: str | None = None) -> str:
    """Return a directory name made of the parts that vary and the signature's first digits.

    Args:
        varying: dotted config key or group → value, in the order to show.
        signed: the run's whole signature.
        title: replaces the varying parts, e.g. the user's own ``paths.run_name``.
    """
    parts = [
        f"{key.rsplit('.', 1)[-1].rsplit('/', 1)[-1]}-{value}" for key, value in varying.items()
    ]
    text = title or "-".join(parts) or "run"
    clean = re.sub(r"[^A-Za-z0-9._+=-]+", "_", text).strip("._-") or "run"
    tail = f"-{signed[:SHORT_SIGNATURE]}"
    return clean[: MAX_NAME_BYTES - len(tail)] + tail


def varying_keys(points: Sequence[Mapping[str, object]]) -> list[str]:
    """Return the signed keys whose value differs between points, in order of first appearance."""
    keys = [
        key
        for key in dict.fromkeys(key for point in points for key in point)
        if re.split(r"[./@]", key.lstrip("+~"))[0] not in UNSIGNED_KEYS
    ]
    return [key for key in keys if len({repr(point.get(key)) for point in points}) > 1]
