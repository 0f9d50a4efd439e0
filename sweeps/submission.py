"""From a plan to running workers, safe against a kill at any step.

lock → compare with what exists → freeze the code → write the plan → ledger intent → hand over →
ledger answer. A worker takes exactly the attempt that was decided here, by atomic creation, so that
even a submission made twice would run nothing twice.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from rundir import DONE, ClusterError, UserError
from sweeps import display, ledger, provenance, scheduler, states
from sweeps.clusters import Cluster
from sweeps.freeze import freeze
from sweeps.launchers import LocalLauncher, SlurmLauncher, job_name
from sweeps.ledger import Submission
from sweeps.plan import Plan
from sweeps.states import RunState

Launcher: TypeAlias = LocalLauncher | SlurmLauncher


def launch(plan: Plan, indices: Sequence[int], launcher: Launcher, cluster: Cluster) -> int:
    """Submit those runs of the plan that are neither done nor in work; return the exit code.

    A local sweep is followed to its end; on SLURM this returns at once.

    Raises:
        UserError: the directory can't be written or another launch is under way.
        ClusterError: the scheduler refused; says what was and what was not submitted.
    """
    is_slurm = isinstance(launcher, SlurmLauncher)
    if is_slurm:
        scheduler.require()
    _require_writable(plan.root)
    with ledger.locked(plan.home, plan.sweep):
        _require_unchanged(plan)
        if is_slurm:
            _settle_intents(plan)
        surveyed = states.survey(plan, scheduler.queue() if is_slurm else None)
        wanted = [surveyed[i] for i in indices if surveyed[i].is_wanted]
        display.announce(plan, [surveyed[i] for i in indices], wanted)
        jobs: list[str] = []
        if wanted:
            plan.write()
            jobs = _hand_over(plan, wanted, launcher, cluster)
    if is_slurm:
        display.submitted(plan, len(wanted), jobs)
        return 0
    if not wanted and all(surveyed[i].state in DONE for i in indices):
        return 0
    return display.follow(plan, indices)


def show(plan: Plan, indices: Sequence[int], launcher: Launcher, cluster: Cluster) -> None:
    """Print what :func:`launch` would do: runs, directories, resources, scripts. Write nothing."""
    if isinstance(launcher, SlurmLauncher):
        scheduler.require()
    queue = scheduler.queue() if isinstance(launcher, SlurmLauncher) else None
    surveyed = states.survey(plan, queue)
    wanted = [surveyed[i] for i in indices if surveyed[i].is_wanted]
    scripts = [
        (part, launcher.script(cluster, plan, part))
        for part in _submissions(launcher, cluster, wanted, code="CODE_HASH")
    ]
    display.dry_run(plan, [surveyed[i] for i in indices], wanted, scripts, cluster)


def _submissions(
    launcher: Launcher, cluster: Cluster, wanted: Sequence[RunState], code: str
) -> list[Submission]:
    runs = [(state.run.index, state.attempts + 1) for state in wanted]
    if not runs:
        return []
    git = provenance.git_state()
    return [
        Submission(id=secrets.token_hex(4), code=code, git=git, **shape)
        for shape in launcher.chunks(cluster, runs)
    ]


def _hand_over(
    plan: Plan, wanted: Sequence[RunState], launcher: Launcher, cluster: Cluster
) -> list[str]:
    """Submit the wanted runs; return the scheduler's job ids."""
    code = freeze(plan.home)
    jobs: list[str] = []
    done = 0
    for submission in _submissions(launcher, cluster, wanted, code):
        submission.write(plan.home)
        ledger.record(plan.home, "intent", submission.id, backend=submission.backend)
        try:
            answer = launcher.submit(cluster, plan, submission)
        except ClusterError as error:
            ledger.record(plan.home, "refused", submission.id, reason=str(error))
            raise ClusterError(
                f"{error}; {done} of {len(wanted)} runs were submitted"
                + (f" as job {', '.join(jobs)}" if jobs else "")
                + "; launch again to submit the rest"
            ) from None
        ledger.record(plan.home, "job", submission.id, **answer)
        jobs.append(str(answer.get("job", submission.id)))
        done += len(submission.runs)
    return jobs


def _settle_intents(plan: Plan) -> None:
    """Ask SLURM for submissions whose launcher died before it could note the job's id."""
    for entry in ledger.entries(plan.home):
        if entry.answer is None and entry.submission.backend == "slurm":
            job = scheduler.find_submission(job_name(plan.sweep, entry.submission.id))
            if job is None:
                ledger.record(plan.home, "void", entry.submission.id)
            else:
                ledger.record(plan.home, "job", entry.submission.id, job=job)


def _require_unchanged(plan: Plan) -> None:
    on_disk = Plan.read(plan.root)
    if on_disk is not None and len(on_disk.runs) > len(plan.runs):
        raise UserError(f"sweep {plan.sweep} was extended by another launch just now; launch again")


def _require_writable(root: Path) -> None:
    there = root.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"can't write {root}: {there} is not a writable directory")
