"""Which settings tell the runs of a selection apart, and what to call them in a table.

A setting is a config value, or the choice of a config group that an override made. Of those that
vary, the ones that somebody asked for in an override come first, in the order of the overrides;
a setting that merely follows from them (Muon has a momentum, AdamW has betas) comes after.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa

from analysis.collecting.runrecord import FIXED
from rundir.files import UNSIGNED_KEYS

_NOT_COMPARED = UNSIGNED_KEYS | {"hydra", "defaults", "debug"}
"""Config groups that are no setting of a run; what a debug group sets are settings themselves."""

CONFIG = "config."
_FILLERS = re.compile(r"config|.*_params")
_TAKEN = frozenset(FIXED) | {"stream", "step", "t"}


@dataclass(frozen=True)
class Settings:
    """The varying settings of a selection of runs."""

    columns: pd.DataFrame
    """One column a setting under its short name, one row a run, index as in the runs table."""
    asked: tuple[str, ...]
    """Names of the columns that overrides ask for."""

    @property
    def telling(self) -> list[str]:
        """The asked-for columns, and of the others only those that tell further runs apart."""
        names = list(self.asked)
        seen = _distinct(self.columns, names)
        for name in map(str, self.columns):
            if name not in names and (count := _distinct(self.columns, [*names, name])) > seen:
                names.append(name)
                seen = count
        return names


def settings_of(table: pd.DataFrame) -> Settings:
    """Find the settings in which the rows of a runs table differ.

    Rows without a config (planned and damaged runs) do not make a setting vary by lacking it.
    """
    configured = table[table["config_json"].notna()]
    varying = [
        name
        for name in configured.columns
        if name.startswith(CONFIG) and _compared(name[len(CONFIG) :]) and _varies(configured[name])
    ]
    asked = {key: column for key, column in _asked(table).items() if _differs(table, key, column)}
    groups = {_bare(key) for key in asked if f"{CONFIG}{key}" not in table.columns}
    rest = [name[len(CONFIG) :] for name in varying]
    paths = [*asked, *(path for path in rest if _candidates(path)[0] not in groups)]
    paths = list(dict.fromkeys(paths))
    dotted = [path for path in paths if f"{CONFIG}{path}" in table.columns]
    names = short_names(dotted)
    values: dict[str, pd.Series] = {}
    for key, column in asked.items():
        values |= _asked_column(table, key, column, names)
    for path in dotted:
        values.setdefault(names[path], table[f"{CONFIG}{path}"])
    chosen = tuple(dict.fromkeys(names.get(key, _bare(key)) for key in asked))
    return Settings(pd.DataFrame(values, index=table.index), chosen)


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Return the shortest unambiguous name of each dotted config path.

    ``optimizer.optimizer_params.lr`` → ``lr``; ``optimizer.optimizer_params.name`` →
    ``optimizer``, since the name of a thing says which it is.
    """
    paths = list(dict.fromkeys(paths))
    candidates = {path: _candidates(path) for path in paths}
    names: dict[str, str] = {}
    for path in paths:
        for name in candidates[path]:
            others = (candidates[other] for other in paths if other != path)
            if name not in _TAKEN and not any(name in other for other in others):
                names[path] = name
                break
        else:
            names[path] = f"{CONFIG}{path}"
    return names


def describe(row: Mapping[Any, Any], names: Iterable[str]) -> str:
    """Return ``muon, wd 0.1``: values of one run, with their names unless the value is a word."""
    words = []
    for name in names:
        value = row[name]
        if pd.isna(value):
            continue
        number = isinstance(value, (bool, int, float))
        words.append(f"{name.rpartition('.')[2]} {value:g}" if number else str(value))
    return ", ".join(words)


def _candidates(path: str) -> list[str]:
    parts = path.split(".")
    if len(parts) > 1 and parts[-1] == "name":
        parts.pop()
        while len(parts) > 1 and _FILLERS.fullmatch(parts[-1]):
            parts.pop()
    return [".".join(parts[i:]) for i in reversed(range(len(parts)))]


def _asked(table: pd.DataFrame) -> dict[str, list[Any]]:
    """Return, for every override key with differing values, its value in each row."""
    rows = [_overrides(text) for text in table["overrides"].tolist()]
    keys = dict.fromkeys(key for row in rows for key in row if _compared(key))
    columns = {key: [row.get(key) for row in rows] for key in keys}
    return {k: column for k, column in columns.items() if len(set(map(repr, column))) > 1}


def _differs(table: pd.DataFrame, key: str, column: list[Any]) -> bool:
    """Say whether the values differ, not only the overrides: one may ask for the default."""
    if f"{CONFIG}{key}" not in table.columns:
        return True
    known = table["config_json"].notna()
    planned = {value for value, done in zip(column, known, strict=True) if not done} - {None}
    return len(planned.union(table.loc[known, f"{CONFIG}{key}"].tolist())) > 1


def _overrides(text: object) -> Mapping[str, Any]:
    if not isinstance(text, str):
        return {}
    pairs = (item.partition("=") for item in json.loads(text))
    return {key.lstrip("+~").partition("@")[0]: _scalar(value) for key, _, value in pairs}


def _scalar(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text.strip("'\"")
    return value if isinstance(value, (bool, int, float)) else text


def _asked_column(
    table: pd.DataFrame, key: str, column: list[Any], names: Mapping[str, str]
) -> dict[str, pd.Series]:
    """Return the column of one asked-for key: its config value, or the group that was chosen."""
    if key in names:
        values = table[f"{CONFIG}{key}"]
        missing = values.isna() & table["config_json"].isna()
        if missing.any():
            values = values.astype(object).where(~missing, pd.Series(column, index=table.index))
            values = values.convert_dtypes(dtype_backend="pyarrow")
        return {names[key]: values}
    chosen = pd.Series(column, index=table.index, dtype=object)
    for name in table.columns:
        if name.startswith(CONFIG) and _candidates(name[len(CONFIG) :])[0] == _bare(key):
            chosen = chosen.where(chosen.notna(), table[name].astype(object))
    texts = [None if pd.isna(value) else str(value) for value in chosen]
    return {_bare(key): pd.Series(texts, table.index, dtype=pd.ArrowDtype(pa.string()))}


def _bare(key: str) -> str:
    return key.rsplit("/", 1)[-1] if key.rsplit("/", 1)[-1] not in _TAKEN else f"{CONFIG}{key}"


def _compared(path: str) -> bool:
    return path.split(".", 1)[0].split("/", 1)[0] not in _NOT_COMPARED


def _varies(column: pd.Series) -> bool:
    return len(column.unique()) > 1


def _distinct(table: pd.DataFrame, names: list[str]) -> int:
    return len(table[names].drop_duplicates()) if names else min(1, len(table))
