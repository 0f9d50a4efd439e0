"""The ``sweep:`` node of a definition: blocks of points, expanded to one mapping a run.

    grid:     {key: [values]}            every combination
    zip:      {key: [values]}            first with first, second with second, …
    runs:     [{key: value}, …]          points written out
    seeds:    n or [seed, …]             every point once a seed
    exclude:  [{key: value}, …]          drops the points that match all of an entry
    blocks:   [{grid|zip|runs|…}, …]     a union; keys beside it apply to every block

A key is a config group (``optimizer``) or a dotted config key. Within one block grid, zip and runs
multiply.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from rundir import UserError, unknown

Point = dict[str, Any]

KEYS = ("blocks", "exclude", "grid", "name", "runs", "seeds", "zip")


def points(definition: Mapping[str, Any], where: str = "sweep") -> list[Point]:
    """Expand a definition to its points, in the order written.

    Raises:
        UserError: unknown key, wrong type, empty list, unequal zip lengths, or nothing to run.
    """
    _check_keys(definition, where)
    blocks = definition.get("blocks")
    if blocks is None:
        found = _expand_block(definition, where)
    else:
        if not isinstance(blocks, list) or not blocks:
            raise UserError(f"{where}.blocks = {blocks!r}; must be a list of blocks")
        shared = _expand_block({k: v for k, v in definition.items() if k != "blocks"}, where)
        found = []
        for i, block in enumerate(blocks):
            inner = points(_mapping(block, f"{where}.blocks[{i}]"), f"{where}.blocks[{i}]")
            found += [{**outer, **point} for outer in shared for point in inner]
    if not found:
        raise UserError(f"{where} excludes every point; nothing is left to run")
    return found


def _expand_block(block: Mapping[str, Any], where: str) -> list[Point]:
    axes = [
        _grid(block.get("grid"), f"{where}.grid"),
        _zip(block.get("zip"), f"{where}.zip"),
        _runs(block.get("runs"), f"{where}.runs"),
        _seeds(block.get("seeds"), f"{where}.seeds"),
    ]
    found = []
    for parts in itertools.product(*axes):
        point: Point = {}
        for part in parts:
            for key in part.keys() & point.keys():
                raise UserError(f"{where}: key {key} is set twice; give it in one place of a block")
            point.update(part)
        found.append(point)
    dropped = _runs(block.get("exclude"), f"{where}.exclude") if block.get("exclude") else []
    return [p for p in found if not any(_matches(p, pattern) for pattern in dropped)]


def _grid(grid: object, where: str) -> list[Point]:
    if grid is None:
        return [{}]
    table = {k: _values(v, f"{where}.{k}") for k, v in _mapping(grid, where).items()}
    return [dict(zip(table, values, strict=True)) for values in itertools.product(*table.values())]


def _zip(columns: object, where: str) -> list[Point]:
    if columns is None:
        return [{}]
    table = {k: _values(v, f"{where}.{k}") for k, v in _mapping(columns, where).items()}
    lengths = {key: len(values) for key, values in table.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{key}: {n}" for key, n in lengths.items())
        raise UserError(f"{where} has lists of unequal length ({shown}); zip pairs them one to one")
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def _runs(runs: object, where: str) -> list[Point]:
    if runs is None:
        return [{}]
    if not isinstance(runs, list) or not runs:
        raise UserError(f"{where} = {runs!r}; must be a list of {{key: value}} entries")
    return [dict(_mapping(run, f"{where}[{i}]")) for i, run in enumerate(runs)]


def _seeds(seeds: object, where: str) -> list[Point]:
    if seeds is None:
        return [{}]
    if isinstance(seeds, int) and not isinstance(seeds, bool) and seeds > 0:
        seeds = list(range(seeds))
    if not isinstance(seeds, list) or not seeds or not all(type(s) is int for s in seeds):
        raise UserError(f"{where} = {seeds!r}; must be a count ≥ 1 or a list of whole numbers")
    return [{"seed": seed} for seed in seeds]


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not value:
        raise UserError(f"{where} = {value!r}; must be a non-empty mapping of config keys")
    for key in value:
        if not isinstance(key, str):
            raise UserError(f"{where}: key {key!r} must be a text; quote it")
    return value


def _values(values: object, where: str) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise UserError(f"{where} = {values!r}; must be a non-empty list of values")
    return values


def _matches(point: Mapping[str, Any], pattern: Mapping[str, Any]) -> bool:
    return all(key in point and point[key] == value for key, value in pattern.items())


def _check_keys(definition: Iterable[str], where: str) -> None:
    for key in definition:
        if key not in KEYS:
            raise unknown("key", str(key), KEYS, where)
