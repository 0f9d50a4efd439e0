"""What a run's state owes to others: a user's cancellation, a job's end, a refused submission."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rundir import State
from sweeps.cluster.scheduler import Ending
from sweeps.follow.handover import Handover
from sweeps.follow.runstate import RunState
from sweeps.records.rules import NOT_REQUEUED

_INTERRUPTED = frozenset({State.PLANNED, State.PREEMPTED, State.CANCELLED, State.LOST})
"""States that a run may be in because its job was cancelled; others tell of something else."""


def cause_of(reason: str) -> str:
    """Return a reason without what a worker added about a run that does not go on by itself."""
    return reason.partition(NOT_REQUEUED)[0]


def is_unexplained(state: RunState) -> bool:
    """Say whether the run's job may tell what happened, or who took the job from it."""
    return state.state in {State.LOST, State.PLANNED, State.PREEMPTED} and not state.is_leaving


def with_cancellation(state: RunState, handed: Handover | None) -> RunState:
    """Call a run cancelled whose job the user took away before it came to an end of its own."""
    if handed is None or state.run.index not in handed.by.entry.cancelled:
        return state
    if state.state not in _INTERRUPTED:
        return state
    why = "cancelled by the user"
    if (
        state.is_unbegun
        or state.state is State.PLANNED
        or (state.status and state.status.step is None)
    ):
        why += " before it began"
    elif state.state is State.PREEMPTED and state.reason:
        why += f"; {cause_of(state.reason)}"
    return replace(state, state=State.CANCELLED, reason=why, is_by_user=True)


def with_denial(state: RunState, denied: tuple[int, str] | None) -> RunState:
    """Say of a run that waits for another launch why the last one brought nothing."""
    if denied is None or not state.is_wanted or denied[0] <= state.attempts:
        return state
    attempt, why = denied
    said = f"{state.reason}; attempt {attempt}: {why}" if state.reason else why
    return replace(state, reason=said)


def with_endings(states: list[RunState], endings: Mapping[str, Ending]) -> list[RunState]:
    """Say of runs that left no end, or were interrupted, what their jobs' ends tell of them."""
    telling = _telling_elements(endings)
    return [_with_ending(state, endings, telling) for state in states]


def _telling_elements(endings: Mapping[str, Ending]) -> dict[str, str]:
    """Return the element of each array that tells why none works any more: the last one to end.

    Of several that ended in the same second, one that failed tells more than a cancelled one.
    """

    def telling(element: str) -> tuple[str, bool]:
        return endings[element].at, endings[element].state is not State.CANCELLED

    found: dict[str, str] = {}
    for element in endings:
        array = element.partition("_")[0]
        found[array] = max(found.get(array, element), element, key=telling)
    return found


def _with_ending(
    state: RunState, endings: Mapping[str, Ending], telling: Mapping[str, str]
) -> RunState:
    job = state.job
    if job is None or not is_unexplained(state):
        return state
    job = job if job in endings else telling.get(job)
    if job is None:
        return state
    ending, reason = endings[job], endings[job].reason
    if state.state is State.PREEMPTED or state.is_handed_back:
        # Its own word stands, unless it went on in vain: then who took the job from it counts.
        if ending.state is not State.CANCELLED:
            return state
        reason = f"{reason}; {cause_of(state.reason or str(state.state))}"
    elif state.is_unbegun and state.attempts:
        reason = f"{state.reason}: {reason}"
    node = ending.node if state.is_unbegun else state.node or ending.node
    return replace(state, state=ending.state, reason=reason, job=job, node=node)
