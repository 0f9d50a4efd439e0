"""Following sweeps: ``status`` and ``watch``.

``--json`` prints, for ``status``::

    {"sweep", "directory", "created_at", "asked_at",
     "summary": {"runs": n, "states": {state: n}},
     "notes": [what could not be learnt, and why],
     "nodes": [{"node", "failed", "ended", "is_suspicious"}],
     "failures": [{"state", "reason", "count", "nodes": {node: n}, "run", "log"}],
     "runs": [{"index", "name", "directory", "state", "reason", "attempts", "job", "node", "host",
               "pid", "step", "total_steps", "figures", "seconds_left", "started_at", "updated_at",
               "ended_at", "exit_code"}]}

and for a second stage that is not launched yet ``{"sweep", "directory", "waits_for": {"sweep",
"jobs"}, "job", "runs": []}``. ``watch`` prints one line a change, ``{"sweep", "asked_at",
"summary", "notes"}``. Times are Unix seconds; what is not known is null.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from rundir import State, Status
from rundir.wording import count_of
from sweeps.follow import display, nodes, progress, runtable, successors
from sweeps.follow.lookout import Lookout
from sweeps.follow.progress import Pace
from sweeps.follow.runstate import RunState
from sweeps.follow.selection import directory_of, find
from sweeps.follow.successors import Successor
from sweeps.planning.plan import Plan

Arguments: TypeAlias = argparse.Namespace

_STATUS_KEYS = (
    "host",
    "pid",
    "step",
    "total_steps",
    "figures",
    "seconds_left",
    "started_at",
    "updated_at",
    "ended_at",
    "exit_code",
)


def exit_code(surveyed: Sequence[RunState]) -> int:
    """Return 1 if a run has ended badly, else 0; what the user has cancelled is no failure."""
    return 1 if any(s.is_bad for s in surveyed) else 0


def status(arguments: Arguments) -> int:
    """Print where every run stands, and why."""
    waiting = second_stage(arguments)
    if waiting is not None:
        if arguments.json:
            display.emit({**waiting.record, "job": waiting.job, "runs": []})
        else:
            display.out.print(f"sweep {waiting.sweep}: {waiting}", markup=False)
        return 0
    plan = find(arguments.sweep, arguments.multirun)
    lookout = Lookout(plan)
    surveyed = lookout.look()
    if arguments.json:
        _print_json(plan, surveyed, lookout.notes)
    else:
        _print_tables(plan, surveyed, every=arguments.all)
        warn(lookout.notes)
    return exit_code(surveyed)


def second_stage(arguments: Arguments) -> Successor | None:
    """Return the sweep that a command is about if it waits to be launched after another one."""
    if arguments.sweep is None:
        return None
    return successors.waiting(directory_of(arguments.sweep, arguments.multirun))


def warn(notes: Sequence[str]) -> None:
    """Say what could not be learnt."""
    for note in notes:
        display.warn(note)


def _print_tables(plan: Plan, surveyed: Sequence[RunState], *, every: bool) -> None:
    out = display.out
    out.print(f"sweep {plan.sweep}: {display.summary(surveyed)}", markup=False)
    shown = list(surveyed) if every else runtable.worth_showing(surveyed)
    if shown:
        out.print(runtable.run_table(plan, shown, out.width))
    if len(shown) < len(surveyed):
        seen = runtable.counts(shown)
        left = {w: n - seen.get(w, 0) for w, n in runtable.counts(surveyed).items()}
        rest = ", ".join(f"{n} {word}" for word, n in left.items() if n)
        out.print(f"not shown: {rest}; --all shows every run", markup=False)
    _print_failures(plan, surveyed)


def _print_failures(plan: Plan, surveyed: Sequence[RunState]) -> None:
    """Print each distinct failure once with the end of one log, and the nodes that look bad."""
    out = display.out
    found = runtable.failures(plan, surveyed)
    for failure in found[: runtable.MOST_FAILURES]:
        places = ", ".join(f"{node} ({count})" for node, count in failure["nodes"].items())
        runs = count_of(failure["count"], "run")
        where = f" on {places}" if places else ""
        out.print(f"\n{runs} {failure['state']}{where}: {failure['reason']}", markup=False)
        if failure["log"]:
            out.print(f"  run {failure['run']}, the end of {failure['log']}:", markup=False)
            for line in runtable.last_lines(Path(failure["log"])):
                out.print(f"    {line}", markup=False, soft_wrap=True)
    if len(found) > runtable.MOST_FAILURES:
        more = len(found) - runtable.MOST_FAILURES
        out.print(f"\nand {count_of(more, 'other failure')}; --json lists all", markup=False)
    blamed = nodes.by_node(surveyed)
    if len(blamed) > 1 or any(record.is_suspicious for record in blamed):
        out.print("\n" + "; ".join(str(record) for record in blamed), markup=False)
    if any(record.is_suspicious for record in blamed):
        bad = ", ".join(record.node for record in blamed if record.is_suspicious)
        out.print(f"suspicious: {bad}; `retry --exclude-bad-nodes` avoids it", markup=False)


def _print_json(plan: Plan, surveyed: Sequence[RunState], notes: Sequence[str]) -> None:
    head = {
        **_brief(plan, surveyed, notes),
        "directory": str(plan.root),
        "created_at": plan.created_at,
        "nodes": [asdict(record) for record in nodes.by_node(surveyed)],
        "failures": runtable.failures(plan, surveyed),
    }
    # A run a line: greppable, and json's own indentation takes ten times as long.
    lines = ",\n".join(json.dumps(_as_dict(plan, state), default=str) for state in surveyed)
    sys.stdout.write(f'{json.dumps(head, default=str)[:-1]}, "runs": [\n{lines}\n]}}\n')


def _brief(plan: Plan, surveyed: Sequence[RunState], notes: Sequence[str]) -> dict[str, Any]:
    summary = {"runs": len(surveyed), "states": runtable.counts(surveyed)}
    return {
        "sweep": plan.sweep,
        "asked_at": time.time(),
        "summary": summary,
        "notes": list(notes),
    }


def _as_dict(plan: Plan, state: RunState) -> dict[str, Any]:
    run, own = state.run, state.status or Status(State.PLANNED)
    recorded = {key: getattr(own, key) if state.status else None for key in _STATUS_KEYS}
    return {
        "index": run.index,
        "name": run.name,
        "directory": f"{plan.root}/{run.directory}",
        "state": str(state.state),
        "reason": state.reason,
        "attempts": state.attempts,
        "job": state.job,
        "node": state.node,
        **recorded,
    }


def watch(arguments: Arguments) -> int:
    """Show the status until nothing is pending or running; Ctrl-C leaves the runs alone."""
    try:
        wait_for_launch(arguments)
        return _watch(find(arguments.sweep, arguments.multirun), arguments)
    except KeyboardInterrupt:
        display.err.print("the runs go on; follow them again with the same command")
        raise


def wait_for_launch(arguments: Arguments) -> None:
    """Wait until a second stage is launched, or its job has gone; asks squeue ever more rarely."""
    waiting, pace = second_stage(arguments), Pace()
    if waiting is not None:
        display.err.print(f"sweep {waiting.sweep}: {waiting}", markup=False)
    pause = pace.first
    while waiting is not None:
        time.sleep(pause)
        pause = pace.after(pause, has_changed=False, has_moved=False)
        waiting = second_stage(arguments)


def _watch(plan: Plan, arguments: Arguments) -> int:
    lookout = Lookout(plan)
    said: set[str] = set()

    def survey() -> list[RunState]:
        found = lookout.look()
        warn([note for note in lookout.notes if note not in said])
        said.update(lookout.notes)
        return found

    printer = _JsonLines(lookout) if arguments.json else None
    last = progress.watch(plan, survey, Pace(), printer)
    display.err.print(f"sweep {plan.sweep}: {display.summary(last)}", markup=False)
    for (word, reason), alike in runtable.by_reason([s for s in last if s.is_bad]).items():
        display.err.print(f"  {count_of(len(alike), 'run')} {word}: {reason}", markup=False)
    return exit_code(last)


class _JsonLines:
    """One line for programs whenever the counts of states change."""

    def __init__(self, lookout: Lookout) -> None:
        self._lookout = lookout
        self._last: object = None

    def __enter__(self) -> _JsonLines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, asked: Sequence[RunState]) -> None:
        """Print the counts if they are others than before."""
        brief = _brief(self._lookout.plan, asked, self._lookout.notes)
        if (brief["summary"], brief["notes"]) != self._last:
            self._last = (brief["summary"], brief["notes"])
            sys.stdout.write(json.dumps(brief) + "\n")
            sys.stdout.flush()
