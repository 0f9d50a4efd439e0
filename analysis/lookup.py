"""What the user means by the name of a sweep, a column or a run."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

import pandas as pd

from analysis.settings import CONFIG, short_names
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

    A setting's short name means it also where no two runs differ in it, and before a metric that
    is called alike.

    Raises:
        UserError: there is none, or several.
    """
    columns = list(table.columns)
    if name in columns:
        return name
    ends = [column for column in columns if column.endswith(f".{name}")]
    if len(ends) == 1:
        return str(ends[0])
    paths = [column[len(CONFIG) :] for column in columns if column.startswith(CONFIG)]
    settings = {short: path for path, short in short_names(paths).items()}
    if name in settings:
        return f"{CONFIG}{settings[name]}"
    finals = [column for column in ends if column == f"final.{name}"]
    if finals:
        return str(finals[0])
    if ends:
        raise UserError(f"column = {name}; must be one of: {', '.join(sorted(ends))}")
    # All settings would be a hundred names.
    near = nearest(name, settings)
    legal = [column for column in columns if not column.startswith(CONFIG)]
    raise unknown("column", name, [*legal, near] if near else legal)


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
