"""Names and schemas of the files in a run directory: what sweeps, trainer and analysis agree on.

.hydra/{config,overrides,hydra}.yaml   the configuration, in Hydra's own format
run.json        what the run is: resolved config, signature, provenance, one record per attempt
status.json     where it stands; replaced atomically
metrics.jsonl   what it measured; append-only
checkpoints/    what it resumes from
train.log       what it printed
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import IO, Any

from rundir.errors import Superseded

SCHEMA_VERSION = 1
"""Written into run.json, status.json and plan.json."""

HYDRA_DIR = ".hydra"
RUN_FILE = "run.json"
STATUS_FILE = "status.json"
METRICS_FILE = "metrics.jsonl"
CHECKPOINT_DIR = "checkpoints"
LOG_FILE = "train.log"

OUTPUTS = "outputs"
"""Where single runs lie, unless the config's ``paths.outputs`` says otherwise."""
MULTIRUN = "multirun"
"""Where sweeps lie, unless the config's ``paths.multirun`` says otherwise."""

SWEEP_DIR = ".sweep"
"""Subdirectory of a sweep that holds its plan, ledger, claims, frozen code and scheduler files."""
PLAN_FILE = "plan.json"

UNSIGNED_KEYS = frozenset({"check", "paths", "cluster", "sweep", "dry_run", "logging"})
"""Top-level keys of the config in which runs may differ without differing in their result."""

RECORD_KEYS = ("stream", "step", "t", "attempt")
"""Keys of every metrics record; all others are metrics."""


class State(str, Enum):
    """Where a run stands. The order is the order of a run's life."""

    PLANNED = "planned"
    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    DIVERGED = "diverged"
    PREEMPTED = "preempted"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"
    NODE_FAIL = "node_fail"
    CANCELLED = "cancelled"
    LOST = "lost"

    def __str__(self) -> str:
        return self.value


ENDED = frozenset(State) - {State.PLANNED, State.PENDING, State.RUNNING}
"""States in which nothing works on the run any more."""

DONE = frozenset({State.COMPLETED, State.DIVERGED})
"""States that launching again leaves alone: the result is final."""


@dataclass(frozen=True)
class Status:
    """Contents of status.json. Times are Unix seconds."""

    state: State
    attempt: int = 1
    host: str | None = None
    """Machine that the run is or was on."""
    node: str | None = field(default_factory=lambda: os.environ.get("SLURMD_NODENAME"))
    """The machine's name in SLURM, which may differ; by default that of this process's node."""
    pid: int | None = None
    job: str | None = None
    """Scheduler's id of the array element or job."""
    step: int | None = None
    total_steps: int | None = None
    figures: Mapping[str, float] | None = None
    """Latest figures worth showing, e.g. loss and tokens_per_second."""
    started_at: float | None = None
    updated_at: float | None = None
    ended_at: float | None = None
    reason: str | None = None
    """Why the run is in a bad state, in one line."""
    exit_code: int | None = None
    seconds_left: float | None = None
    """Estimated seconds to the last step, from this attempt's mean step time."""
    earlier: Mapping[str, str] | None = None
    """Why earlier attempts failed, by node."""

    @property
    def failures(self) -> dict[str, str]:
        """Why this and earlier attempts failed, by node; of those on one node the latest."""
        found = dict(self.earlier or {})
        where = self.node or self.host
        if self.state in {State.FAILED, State.OUT_OF_MEMORY} and where and self.reason:
            found[where] = self.reason
        return found


_STATUS_KEYS = frozenset(item.name for item in fields(Status))


@contextmanager
def replacing(path: Path, permit: Callable[[], None] | None = None) -> Iterator[IO[bytes]]:
    """Open a sibling to write, and put it in the place of ``path`` when the block ends well.

    A reader sees the old file or the new one, never a part; after the block the new one survives a
    crash of the machine. When the block raises, the old file stays and the sibling goes.

    Args:
        path: the file to replace.
        permit: called when only the renaming is left, as writing may have taken minutes on a stuck
            disk; raises to forbid it.
    """
    handle, sibling = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(sibling, 0o644)
        if permit is not None:
            permit()
        os.replace(sibling, path)
    except BaseException:
        Path(sibling).unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    """Make a rename in the directory survive a crash of the machine."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path) -> Iterator[str | None]:
    """Try to take an exclusive lock; yield None with the lock, or else who holds it.

    The kernel gives the lock back when this process ends, however it ends.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    with os.fdopen(handle, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield file.read().strip() or "another process"
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield None


def write_json(path: Path, value: object, permit: Callable[[], None] | None = None) -> None:
    """Replace ``path`` by the JSON of ``value``, if ``permit`` lets it; see :func:`replacing`.

    NaN and the infinities are written as Python's json does (``NaN``, ``Infinity``) and survive the
    round trip.
    """
    with replacing(path, permit) as file:
        file.write(json.dumps(value, indent=1, default=str).encode() + b"\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in ``path``; None if the file is absent or does not hold one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_status(run_dir: Path) -> Status | None:
    """Return the run's own record of where it stands; None before its first attempt."""
    return parse_status(read_json(run_dir / STATUS_FILE))


def parse_status(raw: Mapping[str, Any] | None) -> Status | None:
    """Return what a status.json says; None if it is absent or says nothing that can be used."""
    if raw is None:
        return None
    known = {key: value for key, value in raw.items() if key in _STATUS_KEYS}
    try:
        status = Status(**{"node": None, **known, "state": State(raw["state"])})
    except (KeyError, ValueError, TypeError):
        return None
    earlier = {} if status.earlier is None else status.earlier
    is_usable = isinstance(status.attempt, int) and isinstance(earlier, dict)
    is_usable = is_usable and all(isinstance(why, str) for why in earlier.values())
    return status if is_usable else None


def write_status(run_dir: Path, status: Status, successor: Path | None = None) -> None:
    """Replace status.json atomically.

    Args:
        run_dir: the run directory.
        status: what to record.
        successor: the file that a later attempt begins with.

    Raises:
        Superseded: a later attempt has begun or is on record; status.json is as it was.
    """

    def permit() -> None:
        found = read_status(run_dir)
        if found is not None and found.attempt > status.attempt:
            raise superseded(status.attempt, found.attempt)
        if has_begun(successor):
            raise superseded(status.attempt, status.attempt + 1)

    permit()
    record = {k: v for k, v in asdict(status).items() if v is not None}
    write_json(run_dir / STATUS_FILE, {"version": SCHEMA_VERSION, **record}, permit)


def has_begun(successor: Path | None) -> bool:
    """Say whether the attempt that begins with this file is known to have begun.

    An error, such as a network disk's stale handle, is no answer: whoever has to know looks again.
    """
    try:
        return successor is not None and successor.exists()
    except OSError:
        return False


def superseded(attempt: int, later: int) -> Superseded:
    """Build the error for an attempt that a later one has taken the place of."""
    return Superseded(f"attempt {later} at this run has begun; attempt {attempt} ends")


def open_for_append(path: Path) -> int:
    """Return a descriptor for appending lines; a line that a kill left torn is closed off first."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    size = os.fstat(handle).st_size
    if size and os.pread(handle, 1, size - 1) != b"\n":
        os.write(handle, b"\n")
    return handle


def iter_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole records of a metrics.jsonl in file order; skip torn and foreign lines.

    The collector of the Parquet store has its own reader, which reports what this one skips.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and "step" in record:
                yield record
