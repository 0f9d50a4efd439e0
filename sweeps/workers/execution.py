"""Carrying out one run in this process: snapshot, log, task, end state."""

from __future__ import annotations

import logging
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import OmegaConf

from rundir import OptsweepError, Run, State, Status, Superseded, ending, read_json, write_json
from rundir.files import HYDRA_DIR, RUN_FILE, SCHEMA_VERSION
from rundir.run import FENCE_INTERVAL_S
from sweeps.planning import tasks
from sweeps.planning.composition import Composed, hydra_node
from sweeps.planning.identity import task_config
from sweeps.records import provenance
from sweeps.workers import signals
from sweeps.workers.ranks import ALONE, Place

FENCE_GRACE_S = 5.0
"""Seconds that a task has to end by itself once a later attempt has begun."""


@dataclass(frozen=True)
class Job:
    """Everything that carrying out one run needs."""

    composed: Composed
    directory: Path
    name: str
    signature: str
    sweep: str | None = None
    index: int | None = None
    code: str | None = None
    """Content hash of the frozen code that the run uses; None for the working tree."""
    git: dict[str, Any] | None = None
    rerun_of: str | None = None
    """Directory of the run that this one repeats."""
    place: Place = ALONE
    """Which of the run's processes this is; only rank 0's writes the run's files."""


def execute(
    job: Job,
    attempt: int,
    threads: int | None,
    *,
    successor: Path | None = None,
    slurm_job: str | None = None,
    on_progress: Callable[[Status], None] | None = None,
    on_stop: Callable[[str], None] | None = None,
) -> Status:
    """Carry out one claimed attempt and return its final status.

    The task's errors end the run in a state with a reason; they are logged with their traceback
    to train.log and not raised. Once the next attempt is claimed, nothing more is recorded, the
    attempt has failed however its task ended, and a task that does not end within FENCE_GRACE_S
    takes this process along.

    Args:
        job: what to carry out.
        attempt: the claimed one.
        threads: CPU threads that the task may use; None: every core.
        successor: the claim of the next attempt, once it is made.
        slurm_job: the array element or job that this process is part of.
        on_progress: called with every new status.
        on_stop: called with the name of a signal that asks the run to stop, by its handler.
    """
    run = Run(
        job.directory,
        attempt=attempt,
        threads=threads,
        job=slurm_job,
        on_progress=on_progress,
        rank=job.place.rank,
        world_size=job.place.size,
        successor=successor,
    )
    error: BaseException | None = None
    with _log_to(job.directory / job.place.log_file), _stop_on_signals(run, on_stop), _fenced(run):
        try:
            if run.rank == 0:
                write_snapshot(job, run)
            tasks.load(job.composed.resolved["task"], "task")(
                task_config(job.composed.resolved), run
            )
        except BaseException as raised:
            error = raised
            expected = isinstance(raised, (OptsweepError, KeyboardInterrupt))
            logging.getLogger(__name__).error(  # noqa: TRY400 - a traceback only for surprises
                "%s: %s", *ending(raised)[:2], exc_info=None if expected else raised
            )
        try:
            run.end(*ending(error))
        except Superseded as late:
            state, reason, code = ending(late)
            return replace(run.status, state=state, reason=reason, exit_code=code)
    return run.status


@contextmanager
def _fenced(run: Run) -> Iterator[None]:
    """Have a thread end this process soon after a later attempt has begun, whatever the task does.

    It may call no verb for hours, or not care what they raise.
    """
    is_over = threading.Event()

    def watch() -> None:
        while not run.is_superseded:
            if is_over.wait(FENCE_INTERVAL_S):
                return
        if not is_over.wait(FENCE_GRACE_S):
            said = "attempt %d is superseded and does not end by itself"
            logging.getLogger(__name__).error(said, run.attempt)
            os._exit(Superseded.exit_code)

    threading.Thread(target=watch, name="fence", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def write_snapshot(job: Job, run: Run) -> None:
    """Write ``.hydra`` as Hydra does, and run.json with a record of this attempt."""
    folder = job.directory / HYDRA_DIR
    folder.mkdir(exist_ok=True)
    hydra = hydra_node(job.composed, str(job.directory.absolute()), number=job.index or 0)
    OmegaConf.save(job.composed.config, folder / "config.yaml")
    OmegaConf.save(OmegaConf.create({"hydra": hydra}), folder / "hydra.yaml")
    OmegaConf.save(OmegaConf.create(list(job.composed.overrides)), folder / "overrides.yaml")
    path = job.directory / RUN_FILE
    before = read_json(path) or {}
    write_json(
        path, {**record_of(job, before), "attempts": [*before.get("attempts", ()), _attempt(run)]}
    )


def record_of(job: Job, before: dict[str, Any]) -> dict[str, Any]:
    """Return what run.json says of a run besides its attempts, given what it has said so far."""
    return {
        "version": SCHEMA_VERSION,
        "name": job.name,
        "signature": job.signature,
        "sweep": job.sweep,
        "index": job.index,
        "task": job.composed.resolved["task"],
        "config": job.composed.resolved,
        "overrides": list(job.composed.overrides),
        "created_at": before.get("created_at", time.time()),
        "rerun_of": job.rerun_of,
        "code": job.code,
        "git": job.git,
        "packages": provenance.packages(),
        "python": platform.python_version(),
    }


def _attempt(run: Run) -> dict[str, Any]:
    return {
        "attempt": run.attempt,
        **provenance.host(),
        "pid": os.getpid(),
        "threads": run.threads,
        "world_size": run.world_size,
        "gpus": provenance.gpus(),
        "slurm": provenance.slurm_ids(),
        "started_at": time.time(),
    }


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Send what the task logs to train.log."""
    handler = _Log(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        with suppress(OSError):
            handler.close()


class _Log(logging.FileHandler):
    """A log file that a full disk keeps from growing, without a traceback for every record."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Let the record go."""


@contextmanager
def _stop_on_signals(run: Run, on_stop: Callable[[str], None] | None) -> Iterator[None]:
    """Turn the first stop signal, or Ctrl-C, into a request; a second Ctrl-C interrupts at once."""

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and run.stop_requested:
            raise KeyboardInterrupt
        run.request_stop(signal.Signals(number).name)
        if on_stop is not None:
            on_stop(signal.Signals(number).name)

    heard = (*signals.STOP_SIGNALS, signal.SIGINT)
    before = {number: signal.signal(number, on_signal) for number in heard}
    # A worker blocks them around its fork, so that none is lost before the handlers stand.
    signals.unblock()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_of_killed(before: Status | None, attempt: int, wait_status: int) -> Status:
    """Return the final status of a run whose process ended without recording one.

    Args:
        before: the run's last status, kept apart from its state.
        attempt: the attempt that the process worked on.
        wait_status: from ``os.waitpid``.
    """
    if os.WIFSIGNALED(wait_status):
        number = os.WTERMSIG(wait_status)
        hint = "; often the kernel's out-of-memory killer" if number == signal.SIGKILL else ""
        reason, code = f"killed by {signal.Signals(number).name}{hint}", 128 + number
    else:
        code = os.WEXITSTATUS(wait_status)
        reason = f"the process exited with code {code} without ending the run"
    if before is None or before.attempt != attempt:
        before = Status(State.FAILED, attempt, os.uname().nodename)
    now = time.time()
    return replace(
        before, state=State.FAILED, reason=reason, exit_code=code, ended_at=now, updated_at=now
    )
