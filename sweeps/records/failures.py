"""The failed runs of one launch, counted by all its workers, whichever array they belong to."""

from __future__ import annotations

import os
from pathlib import Path

from rundir import State
from sweeps.records.rules import Rules

LAUNCHES_DIR = "launches"

FAILURES = frozenset({State.FAILED, State.OUT_OF_MEMORY, State.LOST, State.NODE_FAIL})
"""Ends that count against ``max_failures``; a diverged run is a result, a preempted one goes on."""


class Failures:
    """One empty file per failed run in a folder of the launch: nothing to lock, safe on NFS."""

    def __init__(self, home: Path, launch: str, rules: Rules) -> None:
        self._folder = home / LAUNCHES_DIR / launch
        self._most = rules.max_failures

    def add(self, index: int) -> None:
        """Count a run that has failed for good."""
        if self._most is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / f"failed-{index}").touch()

    def refusal(self) -> str | None:
        """Return why this launch begins no more runs; None while it does."""
        if self._most is None:
            return None
        try:
            count = len(os.listdir(self._folder))
        except FileNotFoundError:
            return None
        if count < self._most:
            return None
        noun = "run" if count == 1 else "runs"
        return f"{count} {noun} failed (cluster.max_failures = {self._most})"
