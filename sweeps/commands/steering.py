"""Steering sweeps: ``cancel``, ``retry`` and ``rerun``.

A run that the user has cancelled is ``cancelled`` with that reason, whether it was at work, queued
or waiting for a worker. It is no failure, so that it leaves ``status`` and ``watch`` at exit code
0; ``retry`` and launching again take it up, from its checkpoint if it has one.

``--json`` prints, for ``cancel``, ``{"sweep", "elements": [SLURM ids], "local_workers": n,
"runs": [indices of the runs that it ended]}``; for ``retry`` ``{"sweep", "excluded_nodes",
"runs": [{"index", "name", "state", "reason", "node"}], "exit_code"}``, null in a dry run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeAlias

from rundir import DONE, ENDED, State, Status, UserError, unknown, write_json
from rundir.files import RUN_FILE, write_status
from rundir.wording import count_of
from sweeps.cluster import intents, scheduler
from sweeps.cluster.scheduler import Queue
from sweeps.commands.following import second_stage, warn
from sweeps.follow import display, local, nodes, states, successors
from sweeps.follow.lookout import Lookout
from sweeps.follow.runstate import RunState
from sweeps.follow.selection import find, pick
from sweeps.follow.successors import Successor
from sweeps.planning.plan import Plan, PlannedRun
from sweeps.records import claims, ledger
from sweeps.records.ledger import Entry
from sweeps.records.owners import myself

Arguments: TypeAlias = argparse.Namespace

RETRIED = ENDED - DONE
"""States that ``retry`` submits again by default."""

RETRIABLE = RETRIED | {State.PLANNED}
"""States that ``retry --state`` may name: others are final, or somebody is at work."""


def cancel(arguments: Arguments) -> int:
    """Stop a sweep or some of its runs: those at work save a checkpoint, the others never begin."""
    waiting = second_stage(arguments)
    if waiting is not None:
        return _cancel_launch(waiting, as_json=arguments.json)
    plan = find(arguments.sweep, arguments.multirun)
    # Held, so that no launch that is under way submits more behind its back.
    with ledger.locked(plan.home, plan.sweep):
        intents.settle_locked(plan)
        known = ledger.entries(plan.home)
        entries = [entry for entry in known if entry.answer == ledger.TAKEN]
        queue = states.queue_of(plan, entries)
        surveyed = states.survey(plan, queue, entries=entries)
        live = [state for state in surveyed if state.state in {State.PENDING, State.RUNNING}]
        if arguments.runs is None:
            for entry in known:  # one that SLURM knows nothing of may get through to it yet
                entry.submission.cancel(plan.home)
            done = _cancel_all(plan, entries, live, queue)
        else:
            chosen = {run.index for run in pick(plan, arguments.runs)}
            done = _cancel_runs(plan, entries, [s for s in live if s.run.index in chosen])
    if arguments.json:
        display.emit({"sweep": plan.sweep, **asdict(done)})
    else:
        done.tell(plan, surveyed)
    return 0


def _cancel_launch(waiting: Successor, *, as_json: bool) -> int:
    """End the job that was to launch a second stage."""
    scheduler.cancel([waiting.job])
    successors.forget(Path(waiting.directory))
    if as_json:
        display.emit({"sweep": waiting.sweep, **asdict(_Cancelled([waiting.job], 0, []))})
    else:
        said = f"cancelled job {waiting.job}, which was to launch it after {waiting.after}"
        display.err.print(f"sweep {waiting.sweep}: {said}", markup=False)
    return 0


@dataclass(frozen=True)
class _Cancelled:
    """What a cancellation has ended."""

    elements: list[str]
    """SLURM's ids."""
    local_workers: int
    runs: list[int]

    def tell(self, plan: Plan, before: Sequence[RunState]) -> None:
        """Say it on stderr."""
        counted = (
            (self.runs, "run"),
            (self.elements, "SLURM job"),
            (range(self.local_workers), "local worker"),
        )
        ended = ", ".join(count_of(len(what), noun) for what, noun in counted if len(what))
        if ended:
            at_work = any(before[index].state is State.RUNNING for index in self.runs)
            more = "; runs at work save a checkpoint first" if at_work else ""
            said = f"cancelled {ended}{more}"
        else:
            said = f"nothing to cancel; {display.summary(before)}"
        display.err.print(f"sweep {plan.sweep}: {said}", markup=False)


def _cancel_all(
    plan: Plan, entries: Sequence[Entry], live: Sequence[RunState], queue: Queue | None
) -> _Cancelled:
    _record(plan, entries, live)
    arrays = {element.partition("_")[0] for element in queue or ()}
    elements = sorted(arrays & {entry.job for entry in entries if entry.job})
    scheduler.cancel(elements)
    return _Cancelled(elements, local.stop(plan), [state.run.index for state in live])


def _cancel_runs(plan: Plan, entries: Sequence[Entry], live: Sequence[RunState]) -> _Cancelled:
    """Cancel the array elements of runs, and take from workers that do several what waits.

    Raises:
        UserError: a run is at work in a worker that others need; nothing has been cancelled.
    """
    holders = _holders(entries)
    alone, shared = [], []
    for state in live:
        if not holders[state.run.index].submission.share.drain and state.job:
            alone.append(state)
        elif state.state is State.PENDING:
            shared.append(state)
        else:
            raise UserError(
                f"run {state.run.index} is at work in a worker that does other runs too; "
                "cancel the whole sweep, or let it end"
            )
    ended = [*alone, *(state for state in shared if _withdraw(plan, state))]
    _record(plan, entries, ended)
    elements = [state.job for state in alone if state.job]
    scheduler.cancel(elements)
    return _Cancelled(elements, 0, sorted(state.run.index for state in ended))


def _holders(entries: Sequence[Entry]) -> dict[int, Entry]:
    """Return the last submission of each run."""
    return {index: entry for entry in entries for index, _ in entry.submission.share.runs}


def _record(plan: Plan, entries: Sequence[Entry], ended: Sequence[RunState]) -> None:
    """Note in the ledger that these runs end by the user's wish."""
    holders = _holders(entries)
    runs: dict[str, list[int]] = {}
    for state in ended:
        index = state.run.index
        if index in holders:
            runs.setdefault(holders[index].submission.id, []).append(index)
    for submission, indices in runs.items():
        ledger.record(plan.home, ledger.CANCELLED, submission, runs=indices)


def _withdraw(plan: Plan, state: RunState) -> bool:
    """Take a waiting run's next attempt away from the workers; False if one was quicker."""
    attempt, now = state.attempts + 1, time.time()
    if not claims.claim(plan.claims, str(state.run.index), attempt, myself()):
        return False
    directory = plan.directory(state.run)
    directory.mkdir(parents=True, exist_ok=True)
    before = state.status or Status(State.CANCELLED, started_at=now)
    _tell_config(plan, state.run)
    ended = replace(before, state=State.CANCELLED, attempt=attempt, updated_at=now, ended_at=now)
    write_status(directory, replace(ended, reason="cancelled by the user before it began"))
    return True


def _tell_config(plan: Plan, run: PlannedRun) -> None:
    """Write the run.json of a run that has not begun, for whoever collects its directory."""
    from sweeps.workers.execution import Job, record_of

    path = plan.directory(run) / RUN_FILE
    if path.exists():
        return
    with suppress(UserError):  # it reads the time or the environment: no worker could begin it
        composed = plan.composed(run)
        place = (plan.directory(run), run.name, run.signature, plan.sweep, run.index)
        write_json(path, {**record_of(Job(composed, *place), {}), "attempts": []})


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
