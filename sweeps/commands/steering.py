"""Steering sweeps: ``cancel``, ``retry`` and ``rerun``.

``--json`` prints, for ``cancel``, ``{"sweep", "elements": [SLURM ids], "local_workers": n,
"runs": [indices taken out of the queue]}``; for ``retry`` ``{"sweep", "excluded_nodes",
"runs": [{"index", "name", "state", "reason", "node"}], "exit_code"}``, null in a dry run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from rundir import DONE, ENDED, State, Status, UserError, unknown
from rundir.files import write_status
from rundir.wording import count_of
from sweeps.cluster import scheduler
from sweeps.commands.following import warn
from sweeps.follow import display, local, nodes
from sweeps.follow.lookout import Lookout
from sweeps.follow.selection import find, pick
from sweeps.follow.states import RunState
from sweeps.planning.plan import Plan, PlannedRun
from sweeps.records import claims, ledger
from sweeps.records.owners import myself

Arguments: TypeAlias = argparse.Namespace

RETRIED = ENDED - DONE
"""States that ``retry`` submits again by default."""

RETRIABLE = RETRIED | {State.PLANNED}
"""States that ``retry --state`` may name: others are final, or somebody is at work."""


def cancel(arguments: Arguments) -> int:
    """Stop a sweep or some of its runs: those at work save a checkpoint, the others never begin."""
    plan = find(arguments.sweep, arguments.multirun)
    withdrawn: list[int] = []
    stopped = 0
    if arguments.runs is None:
        elements = _live_arrays(plan)
        stopped = local.stop(plan)
    else:
        elements, withdrawn = _cancel_runs(plan, pick(plan, arguments.runs))
    scheduler.cancel(elements)
    if arguments.json:
        record = {"elements": elements, "local_workers": stopped, "runs": withdrawn}
        display.emit({"sweep": plan.sweep, **record})
    else:
        said = f"cancelled {count_of(len(elements), 'SLURM job')}"
        said += f", stopped {count_of(stopped, 'local worker')}"
        display.err.print(said + f", withdrew {count_of(len(withdrawn), 'run')}")
    return 0


def _live_arrays(plan: Plan) -> list[str]:
    """Return the sweep's arrays in the queue, after noting that none is to requeue itself."""
    entries = ledger.entries(plan.home)
    for entry in entries:
        entry.submission.cancel(plan.home)
    jobs = {entry.job for entry in entries if entry.job}
    queue = scheduler.queue(plan.home.stat().st_uid) if jobs else None
    return sorted(jobs & {element.partition("_")[0] for element in queue or ()})


def _cancel_runs(plan: Plan, runs: Sequence[PlannedRun]) -> tuple[list[str], list[int]]:
    """Return the array elements to cancel, and the runs taken from workers that do several.

    Raises:
        UserError: a run is at work in a worker that others need; nothing has been cancelled.
    """
    surveyed = Lookout(plan).look()
    shares = {
        index: entry.submission.share
        for entry in ledger.entries(plan.home)
        for index, _ in entry.submission.share.runs
    }
    elements, shared = [], []
    for state in (surveyed[run.index] for run in runs):
        if state.state not in {State.PENDING, State.RUNNING}:
            continue
        if not shares[state.run.index].drain and state.job:
            elements.append(state.job)
        elif state.state is State.PENDING:
            shared.append(state)
        else:
            raise UserError(
                f"run {state.run.index} is at work in a worker that does other runs too; "
                "cancel the whole sweep, or let it end"
            )
    return elements, [state.run.index for state in shared if _withdraw(plan, state)]


def _withdraw(plan: Plan, state: RunState) -> bool:
    """Take a waiting run's next attempt away from the workers; False if one was quicker."""
    attempt, now = state.attempts + 1, time.time()
    if not claims.claim(plan.claims, str(state.run.index), attempt, myself()):
        return False
    directory = plan.directory(state.run)
    directory.mkdir(parents=True, exist_ok=True)
    before = state.status or Status(State.CANCELLED, started_at=now)
    ended = replace(before, state=State.CANCELLED, attempt=attempt, updated_at=now, ended_at=now)
    write_status(directory, replace(ended, reason="cancelled before it began"))
    return True


def retry(arguments: Arguments) -> int:
    """Submit runs that ended badly once more, after saying why each of them did."""
    plan = find(arguments.sweep, arguments.multirun)
    wanted = _states_of(arguments.state)
    lookout = Lookout(plan)
    surveyed = lookout.look()
    warn(lookout.notes)
    asked = surveyed if arguments.runs is None else _of(surveyed, pick(plan, arguments.runs))
    again = [state for state in asked if state.state in wanted]
    bad = [record.node for record in nodes.by_node(surveyed) if record.is_suspicious]
    avoided = bad if arguments.exclude_bad_nodes else []
    _announce(plan, again, surveyed, avoided, arguments)
    code = None
    if not arguments.dry_run:
        code = _submit(plan, again, avoided)
    if arguments.json:
        runs = [_as_dict(state) for state in again]
        record = {"sweep": plan.sweep, "excluded_nodes": avoided, "runs": runs, "exit_code": code}
        display.emit(record)
    return code or 0


def _submit(plan: Plan, again: Sequence[RunState], avoided: Sequence[str]) -> int:
    if not again:
        return 0
    # It imports submitit, which following a sweep does not need.
    from sweeps.launch import submission

    return submission.again(plan, [s.run.index for s in again], exclude_nodes=avoided)


def _of(surveyed: Sequence[RunState], runs: Sequence[PlannedRun]) -> list[RunState]:
    return [surveyed[run.index] for run in runs]


def _states_of(words: Sequence[str] | None) -> frozenset[State]:
    if words is None:
        return RETRIED
    named = [part.strip() for word in words for part in word.split(",")]
    for word in named:
        if word not in RETRIABLE:
            raise unknown("state", word, RETRIABLE, "--state")
    return frozenset(State(word) for word in named)


def _announce(
    plan: Plan,
    again: Sequence[RunState],
    surveyed: Sequence[RunState],
    avoided: Sequence[str],
    arguments: Arguments,
) -> None:
    """Say on stderr why each run ended, what is avoided, and what is left out."""
    err = display.err
    for state in again:
        where = f" on {state.node}" if state.node else ""
        why = state.reason or "no reason is on record"
        label = plan.labels[state.run.index]
        err.print(f"  {state.run.index}  {label}  {state.state}{where}: {why}", markup=False)
    if arguments.exclude_bad_nodes:
        said = ", ".join(avoided) or "none: no node fails more than the others"
        err.print(f"excluded nodes: {said}", markup=False)
    left = sum(1 for state in surveyed if state.state is State.PLANNED)
    if left and not any(state.state is State.PLANNED for state in again):
        count = count_of(left, "planned run")
        err.print(f"{count} not submitted; --state planned does that, or launch again")
    if not again:
        err.print(f"sweep {plan.sweep}: nothing to retry", markup=False)
    elif arguments.dry_run:
        err.print(f"dry run: {count_of(len(again), 'run')} would be submitted again")


def _as_dict(state: RunState) -> dict[str, object]:
    place = {"index": state.run.index, "name": state.run.name}
    return {**place, "state": str(state.state), "reason": state.reason, "node": state.node}


def rerun(arguments: Arguments) -> int:
    """Repeat a run from its saved overrides."""
    from sweeps.commands.rerun import How
    from sweeps.commands.rerun import rerun as repeat

    how = How(arguments.verify, arguments.cluster, arguments.rtol, arguments.json)
    return repeat(arguments.run_dir, arguments.overrides, how)


def compare(arguments: Arguments) -> int:
    """Say whether two runs measured the same: exit code 0 if so, 1 if not."""
    from sweeps.commands.rerun import compare as judge

    a, b = arguments.run_a, arguments.run_b
    return judge(a, b, arguments.rtol, as_json=arguments.json)
