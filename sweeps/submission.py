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
from sweeps import display, ledger, local, provenance, scheduler, states
from sweeps.clusters import Cluster
from sweeps.freeze import freeze
from sweeps.launchers import LocalLauncher, SlurmLauncher, job_name
from sweeps.ledger import SLURM, Submission
from sweeps.plan import Candidate, Plan
from sweeps.states import RunState

Launcher: TypeAlias = LocalLauncher | SlurmLauncher


def launch(
    plan: Plan, candidates: Sequence[Candidate], launcher: Launcher, cluster: Cluster
) -> int:
    """Submit those of the candidates that are neither done nor in work; return the exit code.

    A local sweep is followed to its end; on SLURM this returns at once.

    Args:
        plan: an empty plan of the sweep; stands where there is none on disk yet.
        candidates: the runs asked for.
        launcher: hands submissions over.
        cluster: what each worker asks for.

    Raises:
        UserError: the directory can't be written or another launch is under way.
        ClusterError: the scheduler refused; says what was and what was not submitted.
    """
    launcher.require()
    _require_writable(plan.root)
    with ledger.locked(plan.home, plan.sweep):
        plan = Plan.read(plan.root) or plan
        _settle_intents(plan)
        asked, wanted = _survey(plan, plan.admit(candidates))
        display.announce(plan, asked, wanted)
        jobs: list[str] = []
        if wanted:
            chosen = {candidate.signature: candidate for candidate in candidates}
            runs = [state.run for state in wanted]
            plan.renew([run.index for run in runs], [chosen[run.signature] for run in runs])
            plan.write()
            jobs = _hand_over(plan, wanted, launcher, cluster)
    if launcher.is_detached:
        display.submitted(plan, len(wanted), jobs)
        return 0
    if not wanted and all(state.state in DONE for state in asked):
        return 0
    return local.follow(plan, [state.run.index for state in asked])


def show(plan: Plan, candidates: Sequence[Candidate], launcher: Launcher, cluster: Cluster) -> None:
    """Print what :func:`launch` would do: runs, directories, resources, scripts. Write nothing."""
    launcher.require()
    asked, wanted = _survey(plan, plan.admit(candidates))
    scripts = [
        (submission, launcher.script(cluster, plan, submission))
        for submission in _submissions(launcher, cluster, wanted, code="CODE_HASH")
    ]
    display.dry_run(plan, asked, wanted, scripts, cluster)


def _survey(plan: Plan, indices: Sequence[int]) -> tuple[list[RunState], list[RunState]]:
    """Return the states of the runs asked for, and of those among them to submit."""
    surveyed = states.survey(plan, states.queue_of(plan))
    asked = [surveyed[index] for index in indices]
    return asked, [state for state in asked if state.is_wanted]


def _submissions(
    launcher: Launcher, cluster: Cluster, wanted: Sequence[RunState], code: str
) -> list[Submission]:
    runs = [(state.run.index, state.attempts + 1) for state in wanted]
    shares = launcher.divide(cluster, runs) if runs else []
    git = provenance.git_state()
    return [Submission(secrets.token_hex(4), share, code, str(Path.cwd()), git) for share in shares]


def _hand_over(
    plan: Plan, wanted: Sequence[RunState], launcher: Launcher, cluster: Cluster
) -> list[str]:
    """Submit the wanted runs; return the scheduler's job ids."""
    code = freeze(plan.home)
    jobs: list[str] = []
    done = 0
    for submission in _submissions(launcher, cluster, wanted, code):
        submission.write(plan.home)
        ledger.record(plan.home, "intent", submission.id)
        try:
            answer = launcher.submit(cluster, plan, submission)
        except ClusterError as error:
            if not isinstance(error, scheduler.Unanswered):
                ledger.record(plan.home, "refused", submission.id, reason=str(error))
            raise ClusterError(
                f"{error}; {done} of {len(wanted)} runs were submitted"
                + (f" as job {', '.join(jobs)}" if jobs else "")
                + "; launch again to submit the rest"
            ) from None
        ledger.record(plan.home, "job", submission.id, **answer)
        jobs.append(str(answer.get("job", submission.id)))
        done += len(submission.share.runs)
    return jobs


def _settle_intents(plan: Plan) -> None:
    """Ask SLURM for submissions whose launcher died before it could note the job's id."""
    for entry in ledger.entries(plan.home):
        if entry.answer is None and entry.submission.share.backend == SLURM:
            job = scheduler.find_submission(job_name(plan.sweep, entry.submission.id))
            if job is None:
                ledger.record(plan.home, "void", entry.submission.id)
            else:
                ledger.record(plan.home, "job", entry.submission.id, job=job)


def _require_writable(root: Path) -> None:
    there = root.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"can't write {root}: {there} is not a writable directory")
