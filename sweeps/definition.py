"""The ``sweep:`` node of a definition: blocks of points, expanded to one mapping a run.

    grid:     {key: [values]}            every combination
    zip:      {key: [values]}            first with first, second with second, …
    runs:     [{key: value}, …]          points written out
    seeds:    n or [seed, …]             every point once a seed
    blocks:   [{grid|zip|runs|…}, …]     a union; what stands beside it multiplies every block
    exclude:  [{key: value}, …]          drops the points that match all of an entry, last of all

A key is a config group (``optimizer``) or a dotted config key. Within one block grid, zip and runs
multiply.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any

from rundir import UserError, unknown

Point = dict[str, Any]

KEYS = ("blocks", "exclude", "grid", "name", "runs", "seeds", "zip")


def points(definition: Mapping[str, Any], where: str = "sweep") -> list[Point]:
    """Expand a definition to its points, in the order written.

    Raises:
        UserError: unknown key, wrong type, empty list, unequal zip lengths, or nothing to run.
    """
    for key in definition:
        if key not in KEYS:
            raise unknown("key", str(key), KEYS, where)
    found = _expand_block(definition, where)
    if definition.get("blocks") is not None:
        found = [_joined(outer, p, where) for outer in found for p in _blocks(definition, where)]
    found = _without(found, definition.get("exclude"), f"{where}.exclude")
    if not found:
        raise UserError(f"{where} excludes every point; nothing is left to run")
    return found


def _blocks(definition: Mapping[str, Any], where: str) -> list[Point]:
    blocks = definition["blocks"]
    if not isinstance(blocks, list) or not blocks:
        raise UserError(f"{where}.blocks = {blocks!r}; must be a list of blocks")
    named = [
        (_mapping(b, f"{where}.blocks[{i}]"), f"{where}.blocks[{i}]") for i, b in enumerate(blocks)
    ]
    return [point for block, name in named for point in points(block, name)]


def _expand_block(block: Mapping[str, Any], where: str) -> list[Point]:
    axes = [
        _grid(block.get("grid"), f"{where}.grid"),
        _zip(block.get("zip"), f"{where}.zip"),
        _runs(block.get("runs"), f"{where}.runs"),
        _seeds(block.get("seeds"), f"{where}.seeds"),
    ]
    return [
        functools.reduce(lambda one, more: _joined(one, more, where), parts)
        for parts in itertools.product(*axes)
    ]


def _joined(one: Point, more: Point, where: str) -> Point:
    for key in one.keys() & more.keys():
        raise UserError(f"{where}: key {key} is set twice; give it in one place of a block")
    return {**one, **more}


def _without(found: list[Point], exclude: object, where: str) -> list[Point]:
    """Drop the points that match all of an entry."""
    if exclude is None:
        return found
    patterns = _runs(exclude, where)
    keys = {key for point in found for key in point}
    for key in (key for pattern in patterns for key in pattern):
        if key not in keys:
            raise unknown("key", key, keys, where)
    return [p for p in found if not any(pattern.items() <= p.items() for pattern in patterns)]


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
