"""What a run is called where others look at it, the same in each of its attempts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from rundir import Run, read_json
from rundir.files import RUN_FILE
from trainer.config import TrainConfig

SIGNATURE_DIGITS = 16
"""Of the signature in an id."""


@dataclass(frozen=True)
class Identity:
    """Names of a run, and what it was configured with."""

    id: str
    """Begins with the run's signature; what follows tells sweeps and repetitions apart, which may
    hold runs of one signature."""
    name: str
    """The run directory's name."""
    sweep: str | None
    """None for a run by itself."""
    config: dict[str, Any]
    """The resolved configuration, nested."""

    @classmethod
    def of(cls, run: Run, config: TrainConfig) -> Identity:
        """Read run.json; a run without one, as in a notebook, is known by its configuration."""
        record = read_json(run.path / RUN_FILE) or {}
        own = asdict(config)
        signed = record.get("signature") or _digest({**own, "logging": None})
        sweep = record.get("sweep")
        again = run.path.name if record.get("rerun_of") else None
        told_apart = [part for part in (sweep, again) if part]
        tail = f"-{_digest(told_apart)[:6]}" if told_apart else ""
        told = record.get("config") or own
        return cls(f"{signed[:SIGNATURE_DIGITS]}{tail}", run.path.resolve().name, sweep, told)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
