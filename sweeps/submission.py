"""From a plan to running workers, safe against a kill at any step.

lock → compare with what exists → freeze the code → write the plan → ledger intent → hand over →
ledger answer. A worker takes exactly the attempt that was decided here, by atomic creation, so that
even a submission made twice would run nothing twice.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from rundir import DONE, ClusterError, UserError
from sweeps import display, ledger, local, provenance, scheduler, states
from sweeps.clusters import Cluster, cluster
from sweeps.freeze import freeze
from sweeps.launchers import LocalLauncher, SlurmLauncher, job_name
from sweeps.ledger import SLURM, Submission
from sweeps.plan import Candidate, Plan
from sweeps.states import RunState

Launcher: TypeAlias = LocalLauncher | SlurmLauncher


def launch(plan: Plan, candidates: Sequence[Candidate], launcher: Launcher) -> int:
    """Submit those of the candidates that are neither done nor in work; return the exit code.

    A local sweep is followed to its end; on SLURM this returns at once.

    Args:
        plan: an empty plan of the sweep; stands where there is none on disk yet.
        candidates: the runs asked for.
        launcher: hands submissions over.

    Raises:
        UserError: an impossible ``cluster`` node, a directory that can't be written, or another
            launch under way.
        ClusterError: the scheduler refused; says what was and what was not submitted.
    """
    launcher.require()
    clusters = _clusters(candidates, launcher)
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
            jobs = _hand_over(plan, _grouped(wanted, clusters), launcher)
    if launcher.is_detached:
        display.submitted(plan, len(wanted), jobs)
        return 0
    if not wanted and all(state.state in DONE for state in asked):
        return 0
    return local.follow(plan, [state.run.index for state in asked])


def show(plan: Plan, candidates: Sequence[Candidate], launcher: Launcher) -> None:
    """Print what :func:`launch` would do: runs, directories, resources, scripts. Write nothing."""
    launcher.require()
    clusters = _clusters(candidates, launcher)
    asked, wanted = _survey(plan, plan.admit(candidates))
    scripts = [
        (cluster, submission, launcher.script(cluster, plan, submission))
        for cluster, submission in _submissions(
            launcher, _grouped(wanted, clusters), code="CODE_HASH"
        )
    ]
    display.dry_run(plan, asked, wanted, scripts)


def _clusters(candidates: Sequence[Candidate], launcher: Launcher) -> dict[str, Cluster]:
    """Return what each run asks for, by signature; runs that ask for the same share one object."""
    built: dict[str, Cluster] = {}
    texts = {c.signature: json.dumps(c.cluster, sort_keys=True) for c in candidates}
    for candidate in candidates:
        text = texts[candidate.signature]
        if text not in built:
            built[text] = cluster(launcher.cluster_type, candidate.cluster)
    return {signature: built[text] for signature, text in texts.items()}


def _grouped(
    wanted: Sequence[RunState], clusters: Mapping[str, Cluster]
) -> list[tuple[Cluster, list[RunState]]]:
    """Return the runs by what they ask for, in the order in which each is asked for first."""
    groups: dict[int, tuple[Cluster, list[RunState]]] = {}
    for state in wanted:
        asked = clusters[state.run.signature]
        groups.setdefault(id(asked), (asked, []))[1].append(state)
    return list(groups.values())


def _survey(plan: Plan, indices: Sequence[int]) -> tuple[list[RunState], list[RunState]]:
    """Return the states of the runs asked for, and of those among them to submit."""
    surveyed = states.survey(plan, states.queue_of(plan))
    asked = [surveyed[index] for index in indices]
    return asked, [state for state in asked if state.is_wanted]


def _submissions(
    launcher: Launcher, groups: Sequence[tuple[Cluster, list[RunState]]], code: str
) -> list[tuple[Cluster, Submission]]:
    git = provenance.git_state()
    return [
        (asked, Submission(secrets.token_hex(4), share, code, str(Path.cwd()), git))
        for asked, runs in groups
        for share in launcher.divide(asked, [(s.run.index, s.attempts + 1) for s in runs])
    ]


def _hand_over(
    plan: Plan, groups: Sequence[tuple[Cluster, list[RunState]]], launcher: Launcher
) -> list[str]:
    """Submit the wanted runs; return the scheduler's job ids."""
    code = freeze(plan.home)
    total = sum(len(runs) for _, runs in groups)
    jobs: list[str] = []
    done = 0
    for asked, submission in _submissions(launcher, groups, code):
        submission.write(plan.home)
        ledger.record(plan.home, "intent", submission.id)
        try:
            answer = launcher.submit(asked, plan, submission)
        except ClusterError as error:
            if not isinstance(error, scheduler.Unanswered):
                ledger.record(plan.home, "refused", submission.id, reason=str(error))
            raise ClusterError(
                f"{error}; {done} of {total} runs were submitted"
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
