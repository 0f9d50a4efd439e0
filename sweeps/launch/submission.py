"""From a plan to running workers, safe against a kill at any step.

lock → compare with what exists → freeze the code → write the plan → ledger intent → hand over →
ledger answer. A worker takes exactly the attempt that was decided here, by atomic creation, so that
even a submission made twice would run nothing twice.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from hydra.utils import get_class

from rundir import DONE, ClusterError, UserError
from sweeps.cluster import scheduler
from sweeps.cluster.clusters import Cluster, SlurmCluster, cluster
from sweeps.cluster.intents import settle_locked
from sweeps.cluster.launchers import LocalLauncher, SlurmLauncher
from sweeps.cluster.limits import Limits, read_limits, usual_limits
from sweeps.cluster.scheduler import UnknownQueue, Unreachable
from sweeps.follow import display, local, states
from sweeps.follow.runstate import RunState
from sweeps.launch.preview import Array, DryRun, Preview
from sweeps.planning.composition import Composed
from sweeps.planning.plan import Candidate, Plan
from sweeps.records import ledger, provenance
from sweeps.records.freeze import freeze, present_hash
from sweeps.records.ledger import Submission

Launcher: TypeAlias = LocalLauncher | SlurmLauncher | type[LocalLauncher] | type[SlurmLauncher]


@dataclass(frozen=True)
class _Request:
    """What runs ask for, and of whom."""

    launcher: Launcher
    cluster: Cluster


_Groups: TypeAlias = Sequence[tuple[_Request, list[RunState]]]


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
    launcher.require(plan.root)
    requests = _requests({c.signature: (launcher, c.cluster) for c in candidates})
    _require_writable(plan.root)
    with ledger.locked(plan.home, plan.sweep):
        plan = _settled(plan)
        asked, wanted = _survey(plan, plan.admit(candidates))
        display.announce(plan, asked, wanted)
        handed = _Handed()
        if wanted:
            chosen = {candidate.signature: candidate for candidate in candidates}
            runs = [state.run for state in wanted]
            plan.renew([run.index for run in runs], [chosen[run.signature] for run in runs])
            plan.write()
            handed = _hand_over(plan, _grouped(wanted, requests))
    return _released(plan, asked, wanted, handed, [launcher])


def again(plan: Plan, indices: Sequence[int], *, exclude_nodes: Sequence[str] = ()) -> int:
    """Submit planned runs once more, each to the cluster it was planned for; return the exit code.

    Runs that are done, waiting or in work by now are left alone.

    Args:
        plan: the sweep.
        indices: its runs to submit.
        exclude_nodes: SLURM nodes to avoid, besides those of ``cluster.exclude``.

    Raises:
        UserError: another launch is under way, or runs do not compose to what was planned.
        ClusterError: the scheduler refused; says what was and what was not submitted.
    """
    with ledger.locked(plan.home, plan.sweep):
        plan = _settled(plan)
        asked, wanted = _survey(plan, indices)
        requests = _requests(_planned(plan, wanted, exclude_nodes))
        launchers = list({request.launcher: None for request in requests.values()})
        for launcher in launchers:
            launcher.require(plan.root)
        display.announce(plan, asked, wanted, is_retry=True)
        handed = _hand_over(plan, _grouped(wanted, requests)) if wanted else _Handed()
    return _released(plan, asked, wanted, handed, launchers)


def show(
    plan: Plan, candidates: Sequence[Candidate], launcher: Launcher, how: DryRun = DryRun.TEXT
) -> None:
    """Print what :func:`launch` would do, for people or as JSON. Write nothing."""
    found = preview(plan, candidates, launcher)
    if how is DryRun.JSON:
        display.emit(found.as_dict())
    else:
        found.print()


def preview(plan: Plan, candidates: Sequence[Candidate], launcher: Launcher) -> Preview:
    """Return what :func:`launch` would do; write nothing.

    Where SLURM can't be asked it goes by the runs' own records and SLURM's defaults, and says so.
    """
    try:
        launcher.require(plan.root)
        asked, wanted = _survey(plan, plan.admit(candidates))
        limits = read_limits() if launcher.is_detached and wanted else None
    except Unreachable as error:
        said = str(error).partition(";")[0]
        display.warn(
            f"{said}; this goes by the runs' own records and by SLURM's default limits, not by "
            "those of a cluster"
        )
        asked, wanted = _survey(plan, plan.admit(candidates), UnknownQueue())
        limits = usual_limits()
    requests = _requests({c.signature: (launcher, c.cluster) for c in candidates})
    code = present_hash(plan.home, names=plan.tasks, tell=display.warn)
    division = _divided(_grouped(wanted, requests), code, limits)
    arrays = [
        Array(request.cluster, submission, launcher.script(request.cluster, plan, submission))
        for request, submission in division.submissions
    ]
    clusters = {signature: request.cluster for signature, request in requests.items()}
    return Preview(plan, asked, clusters, arrays, division.waiting, division.limits)


def _settled(plan: Plan) -> Plan:
    """Return the plan as it is on disk, after asking SLURM for what became of its intents.

    Raises:
        ClusterError: SLURM does not answer; nothing is decided then.
    """
    plan = Plan.read(plan.root) or plan
    settle_locked(plan)
    return plan


def _requests(asked: Mapping[str, tuple[Launcher, dict[str, Any]]]) -> dict[str, _Request]:
    """Return what each run asks for, by signature; runs that ask for the same share one object."""
    built: dict[tuple[Launcher, str], _Request] = {}
    texts = {name: (to, json.dumps(node, sort_keys=True)) for name, (to, node) in asked.items()}
    for name, (launcher, node) in asked.items():
        if texts[name] not in built:
            built[texts[name]] = _Request(launcher, cluster(launcher.cluster_type, node))
    return {name: built[text] for name, text in texts.items()}


def _planned(
    plan: Plan, wanted: Sequence[RunState], exclude_nodes: Sequence[str]
) -> dict[str, tuple[Launcher, dict[str, Any]]]:
    """Return the launcher and the ``cluster`` node that runs were planned with, by signature.

    Cost: 10 ms for each of the nodes, and 0.1 ms a run.
    """
    found: dict[Hashable, tuple[Launcher, dict[str, Any]]] = {}
    keys = {state.run.signature: plan.alike(state.run) for state in wanted}
    for state in wanted:
        key = keys[state.run.signature]
        if key not in found:
            found[key] = _composed_request(plan.composed(state.run), exclude_nodes)
    return {signature: found[key] for signature, key in keys.items()}


def _composed_request(
    composed: Composed, exclude_nodes: Sequence[str]
) -> tuple[Launcher, dict[str, Any]]:
    launcher: Launcher = get_class(str(composed.hydra.launcher._target_))
    node = dict(composed.resolved.get("cluster") or {})
    if exclude_nodes and launcher.is_detached:
        given = [str(node["exclude"])] if node.get("exclude") else []
        node["exclude"] = ",".join([*given, *exclude_nodes])
    return launcher, node


def _grouped(wanted: Sequence[RunState], requests: Mapping[str, _Request]) -> _Groups:
    """Return the runs by what they ask for, in the order in which each is asked for first."""
    groups: dict[int, tuple[_Request, list[RunState]]] = {}
    for state in wanted:
        request = requests[state.run.signature]
        groups.setdefault(id(request), (request, []))[1].append(state)
    return list(groups.values())


def _survey(
    plan: Plan, indices: Sequence[int], queue: UnknownQueue | None = None
) -> tuple[list[RunState], list[RunState]]:
    """Return the states of the runs asked for, and of those among them to submit.

    Args:
        plan: the sweep.
        indices: its runs that are asked for.
        queue: stands for SLURM's answer where it gives none.
    """
    entries = ledger.entries(plan.home)
    for said in ledger.damage(plan.home, entries):
        display.warn(said)
    known = states.queue_of(plan, entries) if queue is None else queue  # one may be empty
    surveyed = states.survey(plan, known, entries=entries)
    asked = [surveyed[index] for index in indices]
    return asked, [state for state in asked if state.is_wanted]


@dataclass(frozen=True)
class _Division:
    """Runs as the arrays that do them."""

    submissions: list[tuple[_Request, Submission]]
    waiting: int
    """Runs for which the cluster has no room until others have ended."""
    limits: list[str]
    """What keeps them, or workers, out, in SLURM's words."""


def _divided(groups: _Groups, code: str, limits: Limits | None = None) -> _Division:
    """Return what to hand over, within limits; the cluster is asked for them if none are given."""
    git, launch = provenance.git_state(), secrets.token_hex(4)
    found: list[tuple[_Request, Submission]] = []
    cuts: dict[str, None] = {}
    for request, runs in groups:
        attempts = [(state.run.index, state.attempts + 1) for state in runs]
        shares = [request.launcher.share(request.cluster, attempts)]
        if isinstance(request.cluster, SlurmCluster):
            limits = limits or read_limits()
            shares, cut = limits.fit(request.cluster, shares[0])
            cuts |= {cut.name: None} if cut else {}
        for share in shares:
            one = Submission(secrets.token_hex(4), share, code, str(Path.cwd()), git, launch)
            found.append((request, one))
    handed = sum(len(submission.share.runs) for _, submission in found)
    return _Division(found, sum(len(runs) for _, runs in groups) - handed, list(cuts))


@dataclass
class _Handed:
    """What has been handed over."""

    jobs: list[str] = field(default_factory=list)
    """The scheduler's ids."""
    runs: int = 0
    workers: int = 0

    def __str__(self) -> str:
        named = f" as job {', '.join(self.jobs)}" if self.jobs else ""
        return f"runs were submitted{named}"


def _hand_over(plan: Plan, groups: _Groups) -> _Handed:
    """Submit the wanted runs.

    Raises:
        ClusterError: the scheduler refused, or has no room for all of them.
    """
    code = freeze(plan.home, names=plan.tasks, tell=display.warn)
    total = sum(len(runs) for _, runs in groups)
    division = _divided(groups, code)
    handed = _Handed()
    for request, submission in division.submissions:
        submission.write(plan.home)
        ledger.record(plan.home, "intent", submission.id)
        try:
            answer = request.launcher.submit(request.cluster, plan, submission)
        except ClusterError as error:
            if not isinstance(error, scheduler.Unanswered):
                ledger.record(plan.home, ledger.REFUSED, submission.id, reason=str(error))
            said = f"{error}; {handed.runs} of {total} {handed}; launch again to submit the rest"
            raise ClusterError(said) from None
        ledger.record(plan.home, ledger.TAKEN, submission.id, **answer)
        handed.jobs.append(str(answer.get("job", submission.id)))
        handed.runs += len(submission.share.runs)
        handed.workers += submission.elements
    if division.waiting:
        raise ClusterError(
            f"{', '.join(division.limits)}: {handed.runs} of {total} {handed}; launch again when "
            f"some have ended to submit the other {division.waiting}"
        )
    if division.limits:
        display.err.print(f"fewer workers than asked for: {', '.join(division.limits)}")
    return handed


def _released(
    plan: Plan,
    asked: Sequence[RunState],
    wanted: Sequence[RunState],
    handed: _Handed,
    launchers: Sequence[Launcher],
) -> int:
    """Say what was submitted; follow what runs on this machine. Return the exit code."""
    if any(launcher.is_detached for launcher in launchers):
        display.submitted(plan, handed.runs, handed.jobs, handed.workers)
    if all(launcher.is_detached for launcher in launchers):
        return 0
    if not wanted and all(state.state in DONE for state in asked):
        return 0
    return local.follow(plan, [state.run.index for state in asked])


def _require_writable(root: Path) -> None:
    there = root.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"can't write {root}: {there} is not a writable directory")
