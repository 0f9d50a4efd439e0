"""One run, here, in this process."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from rundir import DONE, ClusterError, OptsweepError, State, UserError, read_json, read_status
from rundir.files import LOG_FILE, METRICS_FILE, OUTPUTS, RUN_FILE, UNSIGNED_KEYS, iter_metrics
from sweeps.cluster import requeue, scheduler
from sweeps.define.overrides import parse
from sweeps.follow import display, progress, runrecords
from sweeps.launch.preview import DryRun
from sweeps.planning import identity, tasks
from sweeps.planning.candidates import place
from sweeps.planning.composition import Composed
from sweeps.planning.phase import begin_work
from sweeps.records import claims, provenance
from sweeps.records.claims import Claim
from sweeps.workers.execution import Job, execute

CLAIM = ".claim"
"""Claims of a run outside sweeps lie in its own directory as ``.claim.<attempt>``."""


def run_one(
    composed: Composed, *, dry_run: DryRun = DryRun.NO, directory: Path | None = None
) -> int:
    """Check and carry out one run; return its exit code.

    The same config launched again finds its directory by signature: complete, it is left as it is;
    alive, it is left alone; interrupted, it is resumed.

    Args:
        composed: the run's configuration.
        dry_run: only say what would happen.
        directory: overrides the directory that the config gives.
    """
    tasks.check(composed.resolved, here=True)
    job = job_of(composed, directory)
    begin_work()
    if dry_run is not DryRun.NO:
        attempt, found = _next_attempt(job)
        if dry_run is DryRun.JSON:
            place = {"name": job.name, "directory": str(job.directory)}
            display.emit({**place, "state": found, "start": attempt is not None})
        else:
            display.out.print(f"{found}: {job.directory}", markup=False)
            display.err.print("dry run: nothing was started or written")
        return 0
    return carry_out(job, threads=None)


def job_of(composed: Composed, directory: Path | None = None) -> Job:
    """Return the job of a run outside any sweep.

    A directory of its group that holds this very run counts, whatever words it is named by. Cost: a
    listing of the group's directory.
    """
    signed = identity.signature(composed.resolved)
    fresh = new_directory(composed)
    where = directory or _holding(fresh, signed)
    name = fresh.name if directory else where.name
    return Job(composed, where, name, signed, git=provenance.git_state())


def new_directory(composed: Composed) -> Path:
    """Return the directory that a run outside any sweep gets where none holds it yet."""
    signed = identity.signature(composed.resolved)
    outputs = (composed.resolved.get("paths") or {}).get("outputs") or OUTPUTS
    return Path(outputs) / place(composed.resolved, _varying(composed), signed)[1]


def _holding(fresh: Path, signed: str) -> Path:
    """Return the directory beside ``fresh`` that holds the run; ``fresh`` itself if none does.

    Repetitions count for nothing: their names do not end in the signature.
    """
    for found in (fresh, *sorted(fresh.parent.glob(f"*-{signed[: identity.SHORT_SIGNATURE]}"))):
        if (read_json(found / RUN_FILE) or {}).get("signature") == signed:
            return found
    return fresh


def carry_out(job: Job, threads: int | None) -> int:
    """Claim and execute a job in the foreground; return the exit code, 130 after Ctrl-C."""
    attempt, found = _next_attempt(job)
    display.err.print(f"{found}: {job.directory}", markup=False)
    if attempt is None:
        return 0
    try:
        job.directory.mkdir(parents=True, exist_ok=True)
        won = claims.claim(job.directory, CLAIM, attempt, requeue.claimant())
    except OSError as error:
        raise UserError(f"can't write {job.directory}: {error.strerror}") from None
    if not won:
        raise UserError(f"{job.directory} was claimed by another process just now")
    element, shown = requeue.this_element(), progress.OneRun(job.name)
    successor = claims.path_of(job.directory, CLAIM, attempt + 1)
    stops: list[str] = []

    def on_stop(name: str) -> None:
        stops.append(name)
        with suppress(OSError):  # past the streams, which a signal may find in mid-write
            os.write(2, b"\nstopping at the next step (Ctrl-C again: at once)\n")

    status = execute(
        job,
        attempt,
        threads,
        successor=successor,
        slurm_job=element,
        on_progress=shown,
        on_stop=on_stop,
    )
    if status.state is not State.COMPLETED:
        go_on = "; launch again to go on" if status.state is State.PREEMPTED else ""
        said = f"{status.state}: {status.reason}; see {job.directory / LOG_FILE}{go_on}"
        display.err.print(said, markup=False)
    if status.state is State.PREEMPTED and stops[:1] == ["SIGINT"]:
        return 130
    return status.exit_code or 0


def outcome(composed: Composed, directory: Path | None = None) -> float | None:
    """Return the last loss that a run logged, of stream ``val`` if it has one.

    Raises:
        OptsweepError: the run has not completed.
    """
    job = job_of(composed, directory)
    status = read_status(job.directory)
    if status is not None and status.state is State.DIVERGED:
        return math.inf
    if status is None or status.state is not State.COMPLETED:
        found = f"{status.state}: {status.reason}" if status else "not begun"
        raise OptsweepError(f"{job.name} {found}; see {job.directory / LOG_FILE}")
    records = iter_metrics(job.directory / METRICS_FILE)
    last = {record["stream"]: float(record["loss"]) for record in records if "loss" in record}
    return last.get("val", last.get("train"))


def _next_attempt(job: Job) -> tuple[int | None, str]:
    """Return the attempt to make, None for none, and what to say of the run's directory.

    Raises:
        UserError: the directory holds a run of another configuration.
    """
    held = (read_json(job.directory / RUN_FILE) or {}).get("signature", job.signature)
    if held != job.signature:
        raise UserError(f"{job.directory} holds another run, {held[:6]}; choose another directory")
    claim, status = claims.latest(job.directory, CLAIM), read_status(job.directory)
    attempts = runrecords.attempts_of(claim, status)
    state, reason = runrecords.standing(claim, status, None)
    if state in DONE:
        return None, f"already {state}"
    if state is State.PLANNED:
        return attempts + 1, "new run"
    if claim is not None and state is State.RUNNING:
        held_in = claims.path_of(job.directory, CLAIM, claim.attempt)
        state, reason = runrecords.standing(claim, status, _queue(held_in, claim))
        if state is State.RUNNING:
            return None, _running(held_in, claim)
    return attempts + 1, f"resuming ({state}: {reason})"


def _queue(path: Path, claim: Claim) -> scheduler.Queue | None:
    """Return what squeue shows of the user who made the claim, as far as that tells its end.

    This job, begun again, is in the queue as it was when it made the claim: that is left out.
    """
    if claim.owner.job is None:
        return None
    if claim.owner.is_before(requeue.claimant()):
        return scheduler.Queue()
    try:
        return scheduler.queue(path.stat().st_uid)
    except ClusterError:
        return None


def _running(path: Path, claim: Claim) -> str:
    """Say who holds a claim; if nobody can tell whether that is gone, also what to do then."""
    if claim.is_damaged:
        said = f"claimed already, but {path} is damaged and does not say by whom"
        return f"{said}; if nobody works on the run for sure, delete it"
    found = f"running already, as process {claim.owner.pid} on {claim.owner.host}"
    if claim.owner.is_alive_here():
        return found
    job = f" in job {claim.owner.job}" if claim.owner.job else ""
    return f"{found}{job}; if that is gone for sure, delete {path}"


def _varying(composed: Composed) -> dict[str, Any]:
    """Return what the user changed, for the run's name; sorted, as its order means nothing."""
    changed = {}
    for text in composed.overrides:
        override = parse(text)
        if override.value_type is not None and text not in composed.groups:
            key = override.key_or_group
            if key.split(".")[0] not in identity.ENGINE_KEYS | UNSIGNED_KEYS:
                changed[key] = override.value()
    return dict(sorted(changed.items()))
