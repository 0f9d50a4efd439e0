"""How a benchmark reports: a table for people, then one JSON line for machines.

    {"benchmark": …, "machine": {…}, "figures": {name: value}, "budgets": {name: [least, most]},
     "ok": …}

``make bench`` runs every script of this folder that has a ``main``; it fails when one leaves its
budget. Only the standard library is needed, so that it reports from a machine lent for a GPU too.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Figure:
    """One measured number."""

    name: str
    """With its unit, e.g. ``plan_10000_s``; the key in the JSON line."""
    value: float
    meaning: str
    """What was measured and how often, for the table."""
    least: float | None = None
    """Budget: not less than this."""
    most: float | None = None
    """Budget: not more than this."""

    @property
    def is_within(self) -> bool:
        """Say whether the budget, if there is one, is kept; NaN keeps none."""
        above = self.least is None or self.value >= self.least
        below = self.most is None or self.value <= self.most
        return above and below

    @property
    def budget(self) -> str:
        """The budget for the table."""
        bounds = ((">=", self.least), ("<=", self.most))
        return " ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)


@dataclass
class Report:
    """The figures of one benchmark."""

    benchmark: str
    figures: list[Figure] = field(default_factory=list)
    device: dict[str, object] = field(default_factory=dict)
    """What the figures depend on beside the machine."""

    def add(
        self,
        name: str,
        value: float,
        meaning: str,
        *,
        least: float | None = None,
        most: float | None = None,
    ) -> None:
        """Add a figure; see :class:`Figure`."""
        self.figures.append(Figure(name, value, meaning, least, most))

    def end(self, table: str = "", out: Path | None = None) -> int:
        """Print table and JSON line; return the exit code, 0 only when every budget is kept.

        Args:
            table: stands before the figures' own, of which then only those with a budget appear.
            out: as for :meth:`write`.
        """
        record = self._record()
        sys.stdout.write(f"{self._text(table)}\n{json.dumps(record)}\n")
        if out is not None:
            self.write(table, out)
        return 0 if record["ok"] else 1

    def write(self, table: str, out: Path) -> None:
        """Write both tables to a text file, and the JSON beside it, as ``.json``."""
        out.parent.mkdir(parents=True, exist_ok=True)
        record = self._record()
        on = ", ".join(f"{name} {value}" for name, value in (machine() | self.device).items())
        out.write_text(f"{on}\n\n{self._text(table)}\n", encoding="utf-8")
        out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")

    def _record(self) -> dict[str, object]:
        return {
            "benchmark": self.benchmark,
            "machine": machine() | self.device,
            "figures": {f.name: f.value if isfinite(f.value) else None for f in self.figures},
            "budgets": {f.name: [f.least, f.most] for f in self.figures if f.budget},
            "ok": all(figure.is_within for figure in self.figures),
        }

    def _text(self, table: str) -> str:
        listed = [figure for figure in self.figures if figure.budget or not table]
        return "\n\n".join(part for part in (table, _table(self.benchmark, listed)) if part)


def _table(title: str, figures: list[Figure]) -> str:
    rows = [("figure", "value", "budget", "", "measured")]
    for figure in figures:
        said = ("ok" if figure.is_within else "MISSED") if figure.budget else ""
        value = f"{figure.value:.4g}"
        rows.append((figure.name, value, figure.budget, said, figure.meaning))
    return f"{title}\n{columns(rows)}"


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = (1,)) -> str:
    """Align rows of text, the columns with these numbers to the right; the first row is ruled."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            text.rjust(width) if number in right else text.ljust(width)
            for number, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def machine() -> dict[str, object]:
    """Return what the figures depend on: system, processor, cores free to use, load, Python."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((s.partition(":")[2].strip() for s in lines if s.startswith("model name")), "")


@contextmanager
def workplace() -> Iterator[Path]:
    """Yield an empty directory with a short path, and remove it afterwards."""
    with TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as path:
        yield Path(path)


def environment(**more: str) -> Mapping[str, str]:
    """Return this process's environment such that children import the working tree."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}
