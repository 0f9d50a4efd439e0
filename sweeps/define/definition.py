"""The ``sweep:`` node of a definition: blocks of points, expanded to one mapping a run.

    grid:         {key: [values]}            every combination
    zip:          {key: [values]}            first with first, second with second, …
    runs:         [{key: value}, …]          points written out
    sample:       {n, seed, keys}            points drawn at random; see sweeps.define.sampling
    params_file:  file.json                  a grid in a JSON file; see sweeps.define.paramsfile
    seeds:        n or [seed, …]             every point once a seed
    cluster:      {key: value}               what these points ask of the cluster
    blocks:       [{grid|zip|runs|…}, …]     a union; what stands beside it multiplies every block
    exclude:      [{key: value}, …]          last of all: drops the points that match an entry
    after:        OTHER_SWEEP                at the top only: a second stage; see sweeps.launch
    name:         NAME                       at the top only: the sweep's directory

A key is a config group (``optimizer``) or a dotted config key. Within one block all but the last
four multiply. One of these that is null counts as left out: a definition that inherits from another
has no other way to drop what it inherits.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rundir import IllegalValue, UserError, unknown
from rundir.files import UNSIGNED_KEYS
from sweeps.define import paramsfile, sampling
from sweeps.define.overrides import shown
from sweeps.define.values import listed, require_plain

Point = dict[str, Any]

KEYS = (
    "blocks",
    "cluster",
    "exclude",
    "grid",
    "params_file",
    "runs",
    "sample",
    "seeds",
    "zip",
)
"""What a block may hold."""

MAKING = tuple(key for key in KEYS if key not in {"cluster", "exclude"})
"""What makes points; one that is null must leave another."""

TOP_KEYS = (*KEYS, "after", "name")
"""What the definition itself may hold."""

MAX_POINTS = 100_000
"""A definition of more is a mistake: ten times the largest sweep that is planned in seconds."""

_UNCOUNTED = 10**12
"""A count that a message does not write out."""

_KEY = re.compile(r"\+{0,2}[^\W\d][\w.$/@:-]*", re.ASCII)

_OF_THE_SWEEP = frozenset({"cluster", "paths.multirun", "paths.sweep"})
_NO_RUN_HAS = frozenset({"dry_run", "hydra", "sweep"})
"""Keys, and first parts of keys, that mean something for the whole sweep and nothing for a run."""


@dataclass(frozen=True)
class _Placed:
    """A point, and the block that it comes from."""

    point: Point
    where: str


def points(definition: Mapping[str, Any], folders: Sequence[Path] = ()) -> list[Point]:
    """Expand a definition to its points, in the order written.

    Args:
        definition: the ``sweep`` node, resolved.
        folders: where params files lie.

    Raises:
        UserError: unknown key, wrong type, empty list, unequal zip lengths, the same run twice, or
            nothing to run.
    """
    found = _expanded(definition, "sweep", folders, TOP_KEYS)
    # What a first stage found may well coincide; what somebody wrote twice is a mistake.
    found = _distinct(found, is_mistake=definition.get("after") is None)
    return [placed.point for placed in found]


def makes_points(definition: Mapping[str, Any]) -> bool:
    """Say whether any key of a definition, or block, does."""
    return any(definition.get(key) is not None for key in MAKING)


def bare(key: str) -> str:
    """Return a key without Hydra's ``+``, ``++`` or ``~``."""
    return key.lstrip("+~")


def _root(key: str) -> str:
    return re.split(r"[./@]", bare(key))[0]


def _expanded(
    definition: Mapping[str, Any], where: str, folders: Sequence[Path], legal: Sequence[str]
) -> list[_Placed]:
    for key, value in definition.items():
        if key not in legal:
            raise unknown("key", str(key), legal, where)
        if value is None and key in MAKING and not makes_points(definition):
            must = f"given: null leaves it out, and nothing else in {where} makes a run"
            raise IllegalValue(f"{where}.{key}", value, must)
    found = [_Placed(point, where) for point in _multiplied(definition, where, folders)]
    if definition.get("blocks") is not None:
        inner = _blocks(definition["blocks"], f"{where}.blocks", folders)
        bounded([len(found), len(inner)], where)
        found = [
            _Placed(_joined(outer.point, one.point, where), one.where)
            for outer in found
            for one in inner
        ]
    if definition.get("exclude") is not None:
        found = _without(found, definition["exclude"], f"{where}.exclude", _drawn(definition))
    if not found:
        raise UserError(f"{where} excludes every point; nothing is left to run")
    return found


def _blocks(blocks: object, where: str, folders: Sequence[Path]) -> list[_Placed]:
    if not isinstance(blocks, list) or not blocks:
        raise IllegalValue(where, blocks, "a list of blocks")
    found: list[_Placed] = []
    for i, block in enumerate(blocks):
        name = f"{where}[{i}]"
        if not isinstance(block, Mapping) or not block:
            raise IllegalValue(name, block, "a block such as {grid: …}")
        found += _expanded(block, name, folders, KEYS)
    return found


def _multiplied(block: Mapping[str, Any], where: str, folders: Sequence[Path]) -> list[Point]:
    """Return every combination of what stands in one block."""
    axes = [
        _grid(block.get("grid"), f"{where}.grid"),
        _zip(block.get("zip"), f"{where}.zip"),
        _runs(block.get("runs"), f"{where}.runs"),
        _sample(block.get("sample"), f"{where}.sample"),
        _grid(paramsfile.read(block.get("params_file"), f"{where}.params_file", folders), where),
        _seeds(block.get("seeds"), f"{where}.seeds"),
        _cluster(block.get("cluster"), f"{where}.cluster"),
    ]
    bounded([len(axis) for axis in axes], where)
    return [
        functools.reduce(lambda one, more: _joined(one, more, where), parts)
        for parts in itertools.product(*axes)
    ]


def _joined(one: Point, more: Point, where: str) -> Point:
    if not one or not more:
        return one or more
    known = {bare(key) for key in one}
    for key in more:
        if bare(key) in known:
            raise UserError(f"{where}: key {key} is set twice; give it in one place of a block")
    return {**one, **more}


def _without(
    found: list[_Placed], exclude: object, where: str, drawn: frozenset[str]
) -> list[_Placed]:
    """Drop the points that match all of an entry; an entry that can match none is a mistake."""
    patterns = [
        {bare(key): canonical(value) for key, value in pattern.items()}
        for pattern in _runs(exclude, where)
    ]
    placed = [{bare(k): canonical(v) for k, v in one.point.items()} for one in found]
    values: dict[str, set[object]] = {}
    for point in placed:
        for key, value in point.items():
            values.setdefault(key, set()).add(value)
    for i, pattern in enumerate(patterns):
        for key, value in pattern.items():
            if key not in values:
                raise unknown("key", key, values, where)
            if value not in values[key] and key not in drawn:
                said = shown(_runs(exclude, where)[i])
                raise UserError(f"{where}[{i}] matches no run ({said}); no run has that {key}")
    return [
        one
        for one, point in zip(found, placed, strict=True)
        if not any(pattern.items() <= point.items() for pattern in patterns)
    ]


def _drawn(definition: Mapping[str, Any]) -> frozenset[str]:
    """Return the keys whose values are drawn: which of them occur depends on n."""
    sample = definition.get("sample") or {}
    inner = [_drawn(block) for block in definition.get("blocks") or ()]
    return frozenset(bare(key) for key in sample.get("keys", ())).union(*inner)


def _distinct(found: Sequence[_Placed], *, is_mistake: bool) -> list[_Placed]:
    """Refuse, or else drop, a run that is there twice, differing in nothing that can matter."""
    seen: dict[frozenset[tuple[str, object]], _Placed] = {}
    for placed in found:
        identity = frozenset(
            (bare(key), canonical(value))
            for key, value in placed.point.items()
            if _root(key) not in UNSIGNED_KEYS
        )
        first = seen.setdefault(identity, placed)
        if first is not placed and is_mistake:
            before, here = first.where, placed.where
            again = f"twice in {here}" if before == here else f"in {before} and again in {here}"
            raise UserError(f"run ({shown(placed.point)}) is {again}; remove one")
    return list(seen.values())


def canonical(value: object) -> object:
    """Return something hashable that is equal for equal values: 1 and 1.0 are, 1 and true not."""
    if isinstance(value, bool):
        return (bool, value)
    if isinstance(value, Mapping):
        return frozenset((str(key), canonical(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(canonical(item) for item in value)
    if isinstance(value, float) and math.isnan(value):
        return (float, "nan")
    return value


def _grid(grid: object, where: str) -> list[Point]:
    if grid is None:
        return [{}]
    table = {k: listed(v, f"{where}.{k}") for k, v in _mapping(grid, where).items()}
    bounded([len(values) for values in table.values()], where)
    return [dict(zip(table, values, strict=True)) for values in itertools.product(*table.values())]


def _zip(columns: object, where: str) -> list[Point]:
    if columns is None:
        return [{}]
    table = {k: listed(v, f"{where}.{k}") for k, v in _mapping(columns, where).items()}
    lengths = {key: len(values) for key, values in table.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{key}: {n}" for key, n in lengths.items())
        raise UserError(f"{where} has lists of unequal length ({said}); zip pairs them one to one")
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def _runs(runs: object, where: str) -> list[Point]:
    if runs is None:
        return [{}]
    if not isinstance(runs, list) or not runs:
        raise IllegalValue(where, runs, "a list of {key: value} entries")
    found = [dict(_mapping(run, f"{where}[{i}]")) for i, run in enumerate(runs)]
    for i, point in enumerate(found):
        for key, value in point.items():
            require_plain(value, f"{where}[{i}].{key}")
    return found


def _sample(sample: object, where: str) -> list[Point]:
    if sample is None:
        return [{}]
    if isinstance(sample, Mapping) and isinstance(sample.get("n"), int):
        bounded([sample["n"]], where)
    found = sampling.draw(sample, where)
    _mapping(found[0], f"{where}.keys")
    return found


def _seeds(seeds: object, where: str) -> list[Point]:
    if seeds is None:
        return [{}]
    if isinstance(seeds, int) and not isinstance(seeds, bool) and seeds > 0:
        bounded([seeds], where)
        seeds = list(range(seeds))
    if not isinstance(seeds, list) or not seeds or not all(type(s) is int for s in seeds):
        raise IllegalValue(where, seeds, "a count ≥ 1 or a list of whole numbers")
    require_plain(seeds, where)
    return [{"seed": seed} for seed in seeds]


def _cluster(cluster: object, where: str) -> list[Point]:
    """Return one point of ``cluster.X`` keys; to a mapping in it, of sbatch options, is added."""
    if cluster is None:
        return [{}]
    if not isinstance(cluster, Mapping) or not cluster:
        must = "a mapping such as {timeout_min: 120}; choose the cluster itself with cluster=…"
        raise IllegalValue(where, cluster, must)
    found: Point = {}
    for key, value in cluster.items():
        require_plain(value, f"{where}.{key}")
        if isinstance(value, Mapping):
            found |= {f"++cluster.{key}.{name}": item for name, item in value.items()}
        else:
            found[f"cluster.{key}"] = value
    _mapping(found, where)
    return [found]


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    """Return ``value`` if it maps keys that a run's config may have."""
    if not isinstance(value, Mapping) or not value:
        raise IllegalValue(where, value, "a non-empty mapping of config keys")
    for key in value:
        if not isinstance(key, str):
            raise UserError(f"{where}: key {key!r} must be a text; quote it")
        if not _KEY.fullmatch(key):
            raise UserError(
                f"{where}: {key[:100]!r} is no key; must be a config group or a dotted config key"
            )
        if bare(key) in _OF_THE_SWEEP or _root(key) in _NO_RUN_HAS:
            raise UserError(
                f"{where}: key {key} belongs to the whole sweep; give it on the command line"
            )
    return value


def bounded(counts: Sequence[int], where: str) -> None:
    """Refuse a product of axes of these lengths that is larger than a sweep may be."""
    total = math.prod(counts)
    if total > MAX_POINTS:
        said = f"{total:,}" if total < _UNCOUNTED else f"more than {_UNCOUNTED:,}"
        raise UserError(f"{where} has {said} runs; must be at most {MAX_POINTS:,} in one sweep")
