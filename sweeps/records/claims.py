"""Claims: at most one process works on a run, and the one that does is known.

Attempt ``k`` at a run is claimed by creating ``<name>.<k>`` with its owner inside, in one atomic
step (a hard link, which is atomic on NFS too). A dead owner's run is taken over by creating
``<name>.<k+1>``: of several takers one wins, and no file is ever moved or removed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from rundir import read_json
from sweeps.records.owners import UNKNOWN, Owner


@dataclass(frozen=True)
class Claim:
    """The latest claim of one run."""

    attempt: int
    owner: Owner

    @property
    def is_damaged(self) -> bool:
        """Say whether its file does not tell who holds it."""
        return self.owner == UNKNOWN


def claim(directory: Path, name: str, attempt: int, owner: Owner) -> bool:
    """Try to claim an attempt; False if somebody else already has.

    Args:
        directory: where the claims lie; created if needed.
        name: the run's name among them.
        attempt: counted from 1.
        owner: recorded in the claim.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if path_of(directory, name, attempt).exists():  # a hundredth of the cost of losing the race
        return False
    with NamedTemporaryFile("w", dir=directory, prefix=".", suffix=".new") as file:
        json.dump(asdict(owner), file)
        file.flush()
        os.fchmod(file.fileno(), 0o644)  # colleagues look at the sweep too
        os.fsync(file.fileno())
        try:
            os.link(file.name, path_of(directory, name, attempt))
        except FileExistsError:
            # Or ours: NFS repeats a request whose answer was lost, and is told of its own link.
            return os.fstat(file.fileno()).st_nlink == 2
    return True


def path_of(directory: Path, name: str, attempt: int) -> Path:
    """Return the file whose being there claims the attempt."""
    return directory / f"{name}.{attempt}"


def latest(directory: Path, name: str) -> Claim | None:
    """Return the claim of the highest attempt; None if the run was never claimed."""
    made = [k for found, k in _listed(directory) if found == name]
    return read(directory, name, max(made)) if made else None


def attempts(directory: Path) -> dict[str, int]:
    """Return how often every run was claimed, by name, from one listing of the directory."""
    highest: dict[str, int] = {}
    for name, attempt in _listed(directory):
        highest[name] = max(attempt, highest.get(name, 0))
    return highest


def all_latest(directory: Path) -> dict[str, Claim]:
    """Return the latest claim of every run, by name."""
    return {name: read(directory, name, k) for name, k in attempts(directory).items()}


def _listed(directory: Path) -> Iterator[tuple[str, int]]:
    try:
        entries = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        match = re.fullmatch(r"(.+)\.(\d+)", entry)
        if match:
            yield match[1], int(match[2])


def read(directory: Path, name: str, attempt: int) -> Claim:
    """Return one claim; its owner is unknown where the file is damaged."""
    record = read_json(path_of(directory, name, attempt))
    try:
        owner = UNKNOWN if record is None else Owner.from_record(record)
    except (KeyError, TypeError):
        owner = UNKNOWN
    return Claim(attempt, owner)
