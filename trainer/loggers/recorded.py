"""What a run has recorded so far, for who was not told, or could not write it down."""

from __future__ import annotations

from pathlib import Path

from rundir.files import METRICS_FILE, iter_metrics

_NO_METRICS = frozenset({"stream", "step", "t", "attempt"})
"""What a record holds besides."""


def recorded(directory: Path) -> list[tuple[str, int, dict[str, float]]]:
    """Return stream, step and metrics of a run's records by step; of one made twice the later."""
    records = {
        (record["step"], record["stream"]): {
            name: value for name, value in record.items() if name not in _NO_METRICS
        }
        for record in iter_metrics(directory / METRICS_FILE)
    }
    return [(stream, step, records[step, stream]) for step, stream in sorted(records)]
