"""The command that repeats a run."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.lookup import find_run
from analysis.tables import load_runs
from rundir.errors import UserError
from rundir.files import State


def rerun_command(run: str, store: Path | str = "store") -> str:
    """Return the command that carries a run out again, quoted for a shell.

    A run that has not started has no directory to go by; its command is that of a single run with
    the overrides of the plan. A run directory below the working directory is named relative to it.

    Args:
        run: run id, run directory, name, or the unambiguous end of one.
        store: directory of the store.

    Raises:
        UserError: no store, an unknown run, a name of several, or a run of another program.
    """
    row = find_run(run, load_runs(None, store))
    command = command_of(row)
    if command is None:
        raise UserError(f"run = {row['run']}; was not written by optsweep, which cannot repeat it")
    return command


def command_of(row: Mapping[Any, Any]) -> str | None:
    """Return the command for a row of the runs table; None where another program wrote the run."""
    if pd.isna(row["signature"]):
        return None
    if pd.notna(row["state"]) and row["state"] == State.PLANNED.value:
        overrides = row["overrides"] if isinstance(row["overrides"], str) else "[]"
        return shlex.join(["python", "launch.py", *json.loads(overrides)])
    inside = os.path.relpath(row["directory"])
    directory = row["directory"] if inside.startswith("..") else inside
    return shlex.join(["python", "-m", "sweeps", "rerun", directory])
