"""How a benchmark reports: a table for people, then one JSON line for machines.

    {"benchmark": …, "machine": {…}, "figures": {name: value}, "budgets": {name: [least, most]},
     "ok": …}

``make bench`` runs every script of this folder that has a ``main``; it fails when one leaves its
budget.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

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

    def end(self) -> int:
        """Print table and JSON line; return the exit code, 0 only when every budget is kept."""
        ok = all(figure.is_within for figure in self.figures)
        record = {
            "benchmark": self.benchmark,
            "machine": machine(),
            "figures": {f.name: f.value if isfinite(f.value) else None for f in self.figures},
            "budgets": {f.name: [f.least, f.most] for f in self.figures if f.budget},
            "ok": ok,
        }
        console = Console(soft_wrap=True)
        console.print(_table(self.benchmark, self.figures))
        console.file.write(json.dumps(record) + "\n")
        return 0 if ok else 1


def _table(title: str, figures: list[Figure]) -> Table:
    table = Table("figure", "value", "budget", "", "measured", title=title)
    for figure in figures:
        said = ("ok" if figure.is_within else "MISSED") if figure.budget else ""
        table.add_row(figure.name, f"{figure.value:.4g}", figure.budget, said, figure.meaning)
    return table


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
