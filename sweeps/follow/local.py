"""Sweeps on this machine: follow their workers, and stop them."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Sequence
from contextlib import suppress

from rundir import DONE, State
from rundir.files import LOG_FILE
from rundir.wording import count_of
from sweeps.follow import states
from sweeps.follow.display import err, print_tail, summary
from sweeps.follow.progress import Pace, watch
from sweeps.follow.runrecords import Records
from sweeps.follow.runstate import RunState
from sweeps.follow.runtable import by_reason
from sweeps.planning.plan import Plan
from sweeps.records import claims, ledger

POLL_S = 0.5
"""Seconds between two looks at the runs."""

PACE = Pace(POLL_S, POLL_S, POLL_S)

PATIENCE_S = 10.0
"""Seconds without a run at work after which the user is told why."""


def follow(plan: Plan, indices: Sequence[int]) -> int:
    """Follow a local sweep until nothing works on it any more; return the exit code.

    Ctrl-C asks the workers to checkpoint and stop, waits for them, and tells how to go on.
    """
    try:
        return _finish(plan, _follow(plan, indices))
    except KeyboardInterrupt:
        err.print(
            "stopping: runs save a checkpoint at their next step (Ctrl-C again: stop waiting)"
        )
        stop(plan)
    try:
        err.print(f"sweep {plan.sweep}: {summary(_follow(plan, indices))}; launch again to go on")
    except KeyboardInterrupt:
        err.print("the workers are still stopping; launch again to go on")
    return 130


def _follow(plan: Plan, indices: Sequence[int]) -> list[RunState]:
    looks, records = itertools.count(), Records(plan)

    def survey() -> list[RunState]:
        surveyed = states.survey(plan, records=records)
        asked = [surveyed[index] for index in indices]
        idle = not any(state.state is State.RUNNING for state in asked)
        if next(looks) * POLL_S == PATIENCE_S and idle:
            err.print("waiting for cores: other sweeps of yours use this machine")
        return asked

    return watch(plan, survey, PACE)


def _finish(plan: Plan, asked: Sequence[RunState]) -> int:
    """Print the outcome of a local sweep and return its exit code."""
    err.print(f"sweep {plan.sweep}: {summary(asked)}")
    bad = [s for s in asked if s.state not in DONE and not s.is_by_user]
    for (word, reason), alike in by_reason(bad).items():
        log = plan.directory(alike[0].run) / LOG_FILE
        err.print(
            f"  {count_of(len(alike), 'run')} {word}: {reason}; the end of {log}:", markup=False
        )
        print_tail(log)
    if bad and not by_reason(bad):
        logs = sorted(plan.home.glob(f"{ledger.SUBMISSIONS_DIR}/*/*_log.out"), key=os.path.getmtime)
        err.print("  the workers ended before these runs; the end of their log:")
        print_tail(logs[-1])
    if any(s.state not in DONE for s in asked):
        err.print("  launch again to run what is missing")
    return 1 if bad else 0


def stop(plan: Plan) -> int:
    """Ask the sweep's live local workers to checkpoint and stop; return how many there were.

    Those in the sweep's SLURM jobs are left to SLURM, also on this machine.
    """
    entries = ledger.entries(plan.home)
    started = [owner for entry in entries for owner in entry.owners]
    arrays = {entry.job for entry in entries if entry.job}
    holders = [claim.owner for claim in claims.all_latest(plan.claims).values()]
    at_work = [o for o in holders if o.job is None or o.job.partition("_")[0] not in arrays]
    pids = {owner.pid for owner in (*started, *at_work) if owner.is_alive_here()}
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    return len(pids)
