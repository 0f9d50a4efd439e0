"""What the user means by the name of a sweep, a column or a run."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

import pandas as pd

from analysis.settings import CONFIG
from rundir.errors import UserError, nearest, unknown
from rundir.files import MULTIRUN


def resolve_sweep(sweep: str, known: Collection[str]) -> str:
    """Return the name of the sweep that a name or a path like ``multirun/NAME/`` means.

    Raises:
        UserError: the store has no such sweep.
    """
    path = os.path.normpath(sweep)
    for name in (sweep, path, path.partition(f"{MULTIRUN}/")[2], os.path.basename(path)):
        if name in known:
            return name
    raise unknown("sweep", sweep, known)


def find_column(name: str, table: pd.DataFrame) -> str:
    """Return the column that a full, short or partly dotted name means.

    Raises:
        UserError: there is none, or several.
    """
    columns = list(table.columns)
    if name in columns:
        return name
    ends = [column for column in columns if column.endswith(f".{name}")]
    if len(ends) == 1:
        return str(ends[0])
    finals = [column for column in ends if column == f"final.{name}"]
    if finals:
        return str(finals[0])
    if ends:
        raise UserError(f"column = {name}; must be one of: {', '.join(sorted(ends))}")
    raise unknown("column", name, [c for c in columns if not c.startswith(CONFIG)])


def find_run(text: str, table: pd.DataFrame) -> dict[str, Any]:
    """Return the row of the run that an id, a directory, a name or the end of an id means.

    Raises:
        UserError: there is none, or several.
    """
    ids = table["run"].astype(str)
    path = os.path.normpath(text)
    tests = (
        ids == path,
        table["directory"] == os.path.realpath(text),
        (table["name"] == text).fillna(value=False),
        ids.str.endswith(f"/{path}"),
    )
    for test in tests:
        rows = table[test.astype(bool)]
        if len(rows) == 1:
            return dict(rows.iloc[0])
        if len(rows) > 1:
            some = ", ".join(rows["run"].iloc[:3])
            raise UserError(f"run = {text}; is the name of {len(rows)} runs: {some}; name one")
    names = [*ids, *table["name"].dropna()]
    guess = nearest(text, names)
    hint = f"; did you mean {guess}?" if guess else ""
    raise UserError(f"run = {text}; is none of the {len(table)} runs in the store{hint}")
