"""Whether two runs measured the same: every metric of every step, apart from times."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rundir import UserError, require
from rundir.files import METRICS_FILE, RECORD_KEYS, iter_metrics
from rundir.wording import count_of

RTOL = 1e-5
"""Largest relative difference that counts as equal, unless the user says otherwise."""

_TIMED = re.compile(r"(^|[_./])(time|seconds|per_second|mfu|memory)$")
"""Metrics that measure time or the machine and differ from run to run."""

Key: TypeAlias = tuple[str, int, str]
"""Stream, step and metric."""


@dataclass(frozen=True)
class Difference:
    """One value that is not the same to the bit on both sides."""

    stream: str
    step: int
    metric: str
    before: float | None
    """None: there is no such value on this side."""
    after: float | None
    relative: float
    """|after − before| over the larger of both magnitudes; infinite where that has no meaning."""

    def __str__(self) -> str:
        values = f"{_said(self.before)} → {_said(self.after)}"
        return f"{self.stream} step {self.step}: {self.metric} {values}"


@dataclass(frozen=True)
class Verdict:
    """What the comparison of two runs came to."""

    values: int
    """How many values were compared, those that one side lacks included."""
    rtol: float
    first: Difference | None
    """The first difference beyond the tolerance, by step."""
    largest: Difference | None
    """The largest within the tolerance."""
    missing: tuple[str, ...] = ()
    """What only one side has, one line each."""

    @property
    def is_equal(self) -> bool:
        """Say whether no value differs beyond the tolerance."""
        return self.first is None

    @property
    def exit_code(self) -> int:
        """0: equal to the bit or to the tolerance; 1: different."""
        return 0 if self.is_equal else 1

    def __str__(self) -> str:
        if self.first is not None:
            size = f"relative difference {self.first.relative:.2g}, tolerance {self.rtol:g}"
            return f"different at {self.first} ({size})"
        if self.largest is None:
            return f"equal to the bit: {count_of(self.values, 'value')}"
        at = f"{self.largest.stream} step {self.largest.step} {self.largest.metric}"
        size = f"largest relative difference {self.largest.relative:.2g} at {at}"
        return f"equal to tolerance {self.rtol:g} ({size}): {count_of(self.values, 'value')}"

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict for programs."""
        word = "equal to tolerance" if self.largest else "equal to the bit"
        shown = asdict(self)
        for name in ("first", "largest"):  # JSON has no NaN and no infinity
            for key, value in (shown[name] or {}).items():
                if isinstance(value, float) and not math.isfinite(value):
                    shown[name][key] = repr(value)
        return {"verdict": "different" if self.first else word, "says": str(self), **shown}


def compare(before: Path, after: Path, rtol: float = RTOL) -> Verdict:
    """Compare the metrics of two run directories.

    NaN equals NaN, and an infinity itself. After a resume the latest attempt at a step counts.

    Raises:
        UserError: one of them has no metrics, or the tolerance is impossible.
    """
    require(0 <= rtol < 1, "--rtol", rtol, "at least 0 and below 1")
    return compared(curves(before), curves(after), rtol)


def require_comparable(run_dir: Path, rtol: float) -> None:
    """Raise UserError where :func:`compare` would, of this run whatever the other is."""
    compare(run_dir, run_dir, rtol)


def compared(before: Mapping[Key, float], after: Mapping[Key, float], rtol: float) -> Verdict:
    """Compare two tables of values."""
    keys = sorted(dict.fromkeys([*before, *after]), key=lambda key: key[1])
    found = [
        Difference(*key, *pair, _relative(*pair))
        for key in keys
        if not _same_bits(*(pair := (before.get(key), after.get(key))))
    ]
    within = [difference for difference in found if difference.relative <= rtol]
    return Verdict(
        len(keys),
        rtol,
        first=next((difference for difference in found if difference.relative > rtol), None),
        largest=max(within, key=lambda difference: difference.relative, default=None),
        missing=(
            *_only_in("the first", before.keys() - after.keys()),
            *_only_in("the second", after.keys() - before.keys()),
        ),
    )


def curves(run_dir: Path) -> dict[Key, float]:
    """Return every value that a run measured, apart from times.

    Raises:
        UserError: there is none.
    """
    found: dict[tuple[str, int], tuple[int, dict[str, float]]] = {}
    for record in iter_metrics(run_dir / METRICS_FILE):
        attempt, place = record.get("attempt", 1), (str(record.get("stream")), record["step"])
        values = {
            name: float(value)
            for name, value in record.items()
            if isinstance(value, (int, float)) and name not in RECORD_KEYS
            if not _TIMED.search(name)
        }
        latest, known = found.get(place, (attempt, {}))
        found[place] = (attempt, values if attempt > latest else {**known, **values})
    if not any(values for _, values in found.values()):
        raise UserError(f"{run_dir / METRICS_FILE} holds no values; there is nothing to compare")
    return {(*place, name): v for place, (_, values) in found.items() for name, v in values.items()}


def _same_bits(before: float | None, after: float | None) -> bool:
    if before is None or after is None:
        return False
    if math.isnan(before) and math.isnan(after):
        return True
    return struct.pack("d", before) == struct.pack("d", after)


def _relative(before: float | None, after: float | None) -> float:
    if before is None or after is None:
        return math.inf
    if before == after:  # 0.0 and -0.0
        return 0.0
    size = abs(after - before) / max(abs(before), abs(after))
    return math.inf if math.isnan(size) else size


def _only_in(side: str, keys: Iterable[Key]) -> list[str]:
    """Say which steps of which streams and metrics only one side has."""
    steps: dict[tuple[str, str], list[int]] = {}
    for stream, step, metric in sorted(keys):
        steps.setdefault((stream, metric), []).append(step)
    together: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for (stream, metric), listed in steps.items():
        together.setdefault((stream, tuple(listed)), []).append(metric)
    return [
        f"only in {side}: {', '.join(metrics)} at {stream} step {_span(listed)}"
        for (stream, listed), metrics in together.items()
    ]


def _span(steps: tuple[int, ...]) -> str:
    if len(steps) == 1:
        return str(steps[0])
    return f"{steps[0]} to {steps[-1]} ({count_of(len(steps), 'step')})"


def _said(value: float | None) -> str:
    return "missing" if value is None else repr(value)
