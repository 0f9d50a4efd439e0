"""Values of a definition: what an override can write, and lists of it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rundir import IllegalValue, UserError


def listed(values: object, where: str) -> list[Any]:
    """Return a list of values as it is.

    Raises:
        UserError: it is none, is empty, or holds what no override can write.
    """
    if not isinstance(values, list) or not values:
        raise IllegalValue(where, values, "a non-empty list of values")
    for i, value in enumerate(values):
        require_plain(value, f"{where}[{i}]")
    return values


def require_plain(value: object, where: str) -> None:
    """Refuse what an override has no way to write, and numbers that no float can hold."""
    inner: Iterable[object] = ()
    if isinstance(value, Mapping):
        inner = value.values()
    elif isinstance(value, (list, tuple)):
        inner = value
    elif isinstance(value, int) and abs(value) > sys.float_info.max:
        bits = f"{value.bit_length():,} bits"
        raise UserError(f"{where} is a number of {bits}; must be at most 1.8e308 in size")
    elif not (value is None or isinstance(value, (str, int, float))):
        kind = type(value).__name__
        raise UserError(f"{where} is {kind}; must be a number, a text, true, false, null or a list")
    for item in inner:
        require_plain(item, where)
