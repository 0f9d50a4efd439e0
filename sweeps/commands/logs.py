"""The log of one run: ``logs``.

``--json`` prints ``{"run", "state", "log", "lines"}``; with --follow one line each time that the
log grows, the last when the run has ended.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from rundir import ENDED, State, UserError
from sweeps.commands.following import wait_for_launch
from sweeps.follow import display, runtable
from sweeps.follow.lookout import Lookout
from sweeps.follow.progress import Pace
from sweeps.follow.runrecords import Records
from sweeps.follow.runstate import RunState
from sweeps.follow.selection import find, pick

FOLLOW_S = 0.5
"""Seconds between two looks into a log that is followed."""

LOOK_S = 10.0
"""Seconds between two questions whether the run of a followed log still lives."""


def logs(arguments: argparse.Namespace) -> int:
    """Print the log of one run, and what is added to it with --follow."""
    if arguments.follow:
        wait_for_launch(arguments)
    plan = find(arguments.sweep, arguments.multirun)
    chosen = pick(plan, [arguments.run])
    if len(chosen) != 1:
        raise UserError(f"run = {arguments.run}; must be one run")
    lookout = Lookout(plan)
    state = lookout.look()[chosen[0].index]
    while arguments.follow and state.state is State.PENDING:
        time.sleep(Pace().first)
        state = lookout.look()[chosen[0].index]
    log = (runtable.worker_log if arguments.worker else runtable.log_of)(plan, state)
    if log is None:
        why = f": {state.reason}" if state.reason else ""
        raise UserError(f"{state.run.name} has no log yet; it is {state.state}{why}")
    followed = lookout if arguments.follow else None
    if not arguments.json:
        display.err.print(f"{log}:", markup=False)
        _copy(log, followed, state, _print_raw)
    elif arguments.follow:
        _copy(log, followed, state, _LogLines(log))
    else:
        display.emit(_log_record(log, state, log.read_bytes()))
    return 0


def _log_record(log: Path, state: RunState, text: bytes) -> dict[str, Any]:
    lines = text.decode(errors="replace").splitlines()
    return {"run": state.run.index, "state": str(state.state), "log": str(log), "lines": lines}


def _print_raw(text: bytes, state: RunState, *, is_over: bool) -> None:
    del state, is_over
    sys.stdout.buffer.write(text)
    sys.stdout.flush()


class _LogLines:
    """One JSON object a line for whole lines of a log as they come, and a last one at its end."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._rest = b""

    def __call__(self, text: bytes, state: RunState, *, is_over: bool) -> None:
        """Print what is whole by now."""
        lines, newline, self._rest = (self._rest + text).rpartition(b"\n")
        if newline or is_over:
            whole = lines + newline + (self._rest if is_over else b"")
            sys.stdout.write(json.dumps(_log_record(self._log, state, whole)) + "\n")
            sys.stdout.flush()


class _Show(Protocol):
    def __call__(self, text: bytes, state: RunState, *, is_over: bool) -> None: ...


def _copy(log: Path, lookout: Lookout | None, state: RunState, show: _Show) -> None:
    """Show the log; with a lookout, until the run has ended."""
    looked_at, seen = time.monotonic(), state.status
    with log.open("rb") as file:
        while True:
            # Asked before the read, so that what was written before the end is still copied.
            is_over = lookout is None or not state.is_open
            while chunk := file.read(1 << 16):
                show(chunk, state, is_over=False)
            if is_over or lookout is None:
                show(b"", state, is_over=True)
                return
            time.sleep(FOLLOW_S)
            own = Records(lookout.plan).status(state.run)
            has_ended = own is not None and own.state in ENDED and own != seen
            pause = Pace().first if state.is_leaving else LOOK_S
            if has_ended or time.monotonic() - looked_at >= pause:
                state, looked_at, seen = lookout.look()[state.run.index], time.monotonic(), own
