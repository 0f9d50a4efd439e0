"""Points drawn at random: the ``sample`` of a block.

    sample:
      n: 20
      seed: 0
      keys:
        optimizer.optimizer_params.lr: {log_uniform: [1e-4, 1e-1]}
        optimizer.optimizer_params.weight_decay: {uniform: [0, 0.2]}
        model.config.n_layer: {int_uniform: [2, 8]}      # both ends count
        optimizer: {choice: [adamw, muon]}

The value of a key in the i-th draw follows from (seed, key, i) alone: the first ten points of
n = 20 are those of n = 10, and a further key leaves the values of the others as they are. A draw
that repeats an earlier point is skipped.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rundir import IllegalValue, UserError, require, unknown
from rundir.wording import count_of
from sweeps.define.values import listed

DIGITS = 6
"""Significant digits of a drawn number; more would only make the runs' names longer."""

DRAWS_PER_POINT = 100
"""Draws after which there are not enough different points. Drawing all of 10,000 equally likely
ones takes 10 a point."""

_KEYS = ("keys", "n", "seed")

Args = Sequence[Any]


def draw(sample: object, where: str) -> list[dict[str, Any]]:
    """Return ``n`` different points.

    Raises:
        UserError: what is wrong with the sample, or that there are fewer than ``n`` points.
    """
    if not isinstance(sample, Mapping):
        raise IllegalValue(where, sample, "a mapping {n: …, seed: …, keys: …}")
    for key in sample:
        if key not in _KEYS:
            raise unknown("key", str(key), _KEYS, where)
    n, seed = sample.get("n"), sample.get("seed", 0)
    require(type(n) is int and n >= 1, f"{where}.n", n, "a whole number, at least 1")
    require(type(seed) is int, f"{where}.seed", seed, "a whole number")
    keys = sample.get("keys")
    if not isinstance(keys, Mapping) or not keys:
        raise IllegalValue(f"{where}.keys", keys, "a mapping {key: {uniform: [a, b]}}")
    axes = {str(key): _axis(how, f"{where}.keys.{key}") for key, how in keys.items()}
    found: dict[str, dict[str, Any]] = {}
    for i in range(DRAWS_PER_POINT * (int(n or 0) + 10)):
        point = {key: quantile(_uniform(seed, key, i)) for key, quantile in axes.items()}
        found.setdefault(repr(point), point)
        if len(found) == n:
            return list(found.values())
    count = count_of(len(found), "different point")
    raise UserError(f"{where}.n = {n}; must be at most {len(found)}: the keys have only {count}")


def _uniform(seed: object, key: str, i: int) -> float:
    """Return a number in [0, 1) that is the same on every machine and Python."""
    digest = hashlib.sha256(f"{seed}\n{key}\n{i}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _axis(how: object, where: str) -> Callable[[float], Any]:
    """Return the quantile function of one key's distribution."""
    if not isinstance(how, Mapping) or len(how) != 1:
        must = f"one distribution with its arguments: {', '.join(_DISTRIBUTIONS)}"
        raise IllegalValue(where, how, must)
    ((name, args),) = how.items()
    if name not in _DISTRIBUTIONS:
        raise unknown("distribution", str(name), _DISTRIBUTIONS, where)
    return _DISTRIBUTIONS[name](args, f"{where}.{name}")


def _bounds(args: object, where: str, kinds: tuple[type, ...] = (int, float)) -> tuple[Any, Any]:
    words = "whole numbers" if kinds == (int,) else "finite numbers"
    if not (
        isinstance(args, list)
        and len(args) == 2
        and all(type(a) in kinds for a in args)
        and all(abs(a) <= sys.float_info.max for a in args)
        and 0 < args[1] - args[0] <= sys.float_info.max
    ):
        must = f"two {words} [a, b] with a below b, both and b - a at most 1.8e308 in size"
        raise IllegalValue(where, args, must)
    return args[0], args[1]


def _rounded(value: float, low: float, high: float) -> float:
    return min(max(float(f"{value:.{DIGITS}g}"), float(low)), float(high))


def _over_uniform(args: object, where: str) -> Callable[[float], float]:
    low, high = _bounds(args, where)
    return lambda u: _rounded(low + u * (high - low), low, high)


def _over_log_uniform(args: object, where: str) -> Callable[[float], float]:
    low, high = _bounds(args, where)
    if low <= 0:
        raise IllegalValue(where, args, "bounds above 0")
    ratio = math.log(high) - math.log(low)
    return lambda u: _rounded(math.exp(math.log(low) + u * ratio), low, high)


def _over_int_uniform(args: object, where: str) -> Callable[[float], int]:
    low, high = _bounds(args, where, (int,))
    return lambda u: int(low + math.floor(u * (high - low + 1)))


def _over_choice(args: object, where: str) -> Callable[[float], Any]:
    values = listed(args, where)
    return lambda u: values[math.floor(u * len(values))]


_DISTRIBUTIONS: dict[str, Callable[[object, str], Callable[[float], Any]]] = {
    "choice": _over_choice,
    "int_uniform": _over_int_uniform,
    "log_uniform": _over_log_uniform,
    "uniform": _over_uniform,
}
