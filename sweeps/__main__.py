"""Follow and steer sweeps, from any shell, any day: ``python -m sweeps status|watch|…``."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rundir import DONE, ENDED, ClusterError, UserError, exit_code_of, unknown
from rundir.files import LOG_FILE, MULTIRUN, PLAN_FILE, SWEEP_DIR
from sweeps import display, ledger, local, scheduler, states
from sweeps.plan import Plan
from sweeps.states import RunState

WATCH_S = (2.0, 30.0)
"""Seconds between two refreshes of ``watch``: at first, and the most it backs off to."""


def find(name: str | None) -> Plan:
    """Return the plan of a sweep by name or path; None stands for the one launched last.

    Raises:
        UserError: there is none; names the nearest.
    """
    found = {
        path.parent.parent.name: path for path in Path(MULTIRUN).glob(f"*/{SWEEP_DIR}/{PLAN_FILE}")
    }
    if name is None:
        if not found:
            raise UserError(
                f"no sweep in {Path(MULTIRUN).absolute()}; launch one, or give its path"
            )
        root = max(found.values(), key=lambda path: path.stat().st_mtime).parent.parent
    elif (Path(name) / SWEEP_DIR).is_dir():
        root = Path(name)
    elif name in found:
        root = found[name].parent.parent
    else:
        raise unknown("sweep", name, found, MULTIRUN)
    plan = Plan.read(root)
    if plan is None:
        raise UserError(f"{root} has no plan")
    return plan


def survey(plan: Plan) -> list[RunState]:
    """Return the runs' states; without an answer from SLURM say so and go by the runs' records."""
    try:
        return states.survey(plan, states.queue_of(plan))
    except ClusterError as error:
        display.err.print(f"warning: {error}; states below are from the runs' own records")
        return states.survey(plan)


def status(arguments: argparse.Namespace) -> int:
    """Print where every run stands."""
    plan = find(arguments.sweep)
    surveyed = survey(plan)
    if arguments.json:
        print(json.dumps([_as_dict(plan, state) for state in surveyed], indent=1))
    else:
        table = display.run_table(plan, surveyed)
        table.title = f"sweep {plan.sweep}: {display.summary(surveyed)}"
        table.title_justify = "left"
        display.out.print(table)
    return _exit_code(surveyed)


def watch(arguments: argparse.Namespace) -> int:
    """Show the status until nothing is pending or running; Ctrl-C leaves the runs alone."""
    plan = find(arguments.sweep)
    first, longest = WATCH_S
    pauses = (min(first * 1.1**count, longest) for count in itertools.count())
    try:
        last = display.watch(plan, lambda: survey(plan), pauses)
    except KeyboardInterrupt:
        display.err.print("the runs go on; follow them again with the same command")
        return 0
    display.err.print(f"sweep {plan.sweep}: {display.summary(last)}")
    return _exit_code(last)


def _exit_code(surveyed: Sequence[RunState]) -> int:
    return 1 if any(s.state in ENDED - DONE for s in surveyed) else 0


def logs(arguments: argparse.Namespace) -> int:
    """Print the log of one run, and what is added to it with --follow."""
    plan = find(arguments.sweep)
    matching = [run for run in plan.runs if arguments.run in (str(run.index), run.name)]
    if not matching:
        raise unknown("run", arguments.run, [run.name for run in plan.runs], plan.sweep)
    path = plan.directory(matching[0]) / LOG_FILE
    if not path.exists():
        raise UserError(f"{matching[0].name} has no log yet; it was not started")
    with path.open("rb") as file:
        try:
            while chunk := file.read(1 << 16) or arguments.follow:
                if chunk is True:
                    time.sleep(0.5)
                else:
                    sys.stdout.buffer.write(chunk)
                    sys.stdout.flush()
        except KeyboardInterrupt:
            pass
    return 0


def cancel(arguments: argparse.Namespace) -> int:
    """Stop a sweep: cancel its jobs, ask its local workers to checkpoint and end."""
    plan = find(arguments.sweep)
    entries = ledger.entries(plan.home)
    for entry in entries:  # first, so that no worker requeues itself meanwhile
        entry.submission.cancel(plan.home)
    stopped = local.stop(plan)
    jobs = {entry.job for entry in entries if entry.job}
    queue = scheduler.queue() if jobs else None
    live = {element for element in queue or {} if element.partition("_")[0] in jobs}
    scheduler.cancel({element.partition("_")[0] for element in live})
    display.err.print(f"cancelled {len(live)} SLURM elements, stopped {stopped} local workers")
    return 0


def rerun(arguments: argparse.Namespace) -> int:
    """Repeat a run from its saved overrides."""
    from sweeps.rerun import rerun as repeat

    return repeat(arguments.run_dir, arguments.overrides, verify=arguments.verify)


def ls(arguments: argparse.Namespace) -> int:
    """List the sweeps of this directory, newest last."""
    plans = [p for path in Path(MULTIRUN).glob(f"*/{SWEEP_DIR}") if (p := Plan.read(path.parent))]
    rows = [(plan, states.survey(plan)) for plan in sorted(plans, key=lambda p: p.created_at)]
    if arguments.json:
        listed = [{"sweep": p.sweep, "directory": str(p.root), "runs": len(s)} for p, s in rows]
        print(json.dumps(listed, indent=1))
    for plan, surveyed in [] if arguments.json else rows:
        display.out.print(f"{plan.sweep:<32} {display.summary(surveyed)}", markup=False)
    return 0


def _as_dict(plan: Plan, state: RunState) -> dict[str, Any]:
    run = state.run
    own = asdict(state.status) if state.status else {}
    place = {"index": run.index, "name": run.name, "directory": str(plan.directory(run))}
    return {**own, **place, "state": str(state.state), "reason": state.reason, "job": state.job}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sweeps", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for function in (status, watch, logs, cancel, rerun, ls):
        about = (function.__doc__ or "").splitlines()[0]
        command = commands.add_parser(function.__name__, help=about, description=about)
        command.set_defaults(function=function)
        if function is rerun:
            command.add_argument("run_dir", type=Path, help="directory of the run to repeat")
            command.add_argument("overrides", nargs="*", help="overrides on top of the saved ones")
            command.add_argument(
                "--verify", action="store_true", help="compare the metrics afterwards"
            )
        elif function is not ls:
            command.add_argument("sweep", nargs="?", help="name or directory; default the latest")
        if function is logs:
            command.add_argument("run", help="index or name of the run")
            command.add_argument("-f", "--follow", action="store_true", help="go on as it grows")
        if function in (status, ls):
            command.add_argument("--json", action="store_true", help="for programs")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parsed = _parser().parse_args(arguments)
    return exit_code_of(lambda: parsed.function(parsed))


if __name__ == "__main__":
    sys.exit(main())
