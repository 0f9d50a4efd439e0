"""Values and points as Hydra override strings, quoted so that they arrive unchanged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException

from rundir import UserError

_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_./+-]*")
_SPECIAL = re.compile(r"[\\()\[\]{}:=,\s]")
"""What the grammar takes in a mapping's key behind a backslash only."""

_PLAIN = frozenset({bool, int, float, str, type(None)})
_SPOKEN_FOR = frozenset({"true", "false", "yes", "no", "on", "off", "null", "none", "nan", "inf"})


def override(key: str, value: object) -> str:
    """Return ``key=value`` such that Hydra parses back exactly ``value``."""
    return f"{key}={literal(value)}"


def setting(key: str, value: Any) -> Override:
    """Return the parsed ``key=value``, without parsing it where the value is a plain one.

    Raises:
        UserError: the key does not follow Hydra's grammar.
    """
    text = override(key, value)
    if type(value) not in _PLAIN or not (head := _head(key)):
        return parse(text)
    return replace(head, _value=value, input_line=text)


@lru_cache(maxsize=1024)
def _head(key: str) -> Override | None:
    """Return the parsed ``key=0``; None if the text does more than set the key."""
    try:
        found = parse(f"{key}=0")
    except UserError:
        return None
    is_whole = found.get_key_element() == key and found.value_type is ValueType.ELEMENT
    return found if is_whole and not found.is_delete() else None


def literal(value: object) -> str:
    """Return ``value`` in Hydra's override grammar.

    Raises:
        UserError: a mapping in it has a key that the grammar can't spell.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_dict_key(k)}:{literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(literal(item) for item in value) + "]"
    return _quoted(str(value))


def _dict_key(key: object) -> str:
    """Return a mapping's key in Hydra's grammar, which takes none in quotes."""
    text = _SPECIAL.sub(r"\\\g<0>", key) if isinstance(key, str) else literal(key)
    if _read_as_key(text) == literal([key]):
        return text
    raise UserError(
        f"key {brief(repr(key))} of a mapping can't be written in an override; must be a number, "
        "true, false, null, or an ASCII text without quotes that reads as none of these"
    )


def _read_as_key(text: str) -> str | None:
    """Return the literal of a list of the key that Hydra reads in a text; None if it reads none."""
    try:
        found: Any = parse(f"x={{{text}:0}}").value()
    except UserError:
        return None
    return literal(list(found))


def _quoted(text: str) -> str:
    if _BARE.fullmatch(text) and text.lower() not in _SPOKEN_FOR:
        return text
    # Inside quotes the grammar unescapes a backslash only in front of a quote or at the end.
    escaped = re.sub(r"(\\*)'", lambda m: m[1] * 2 + r"\'", text)
    escaped = re.sub(r"(\\+)$", lambda m: m[1] * 2, escaped)
    return f"'{escaped}'"


@lru_cache(maxsize=65536)
def parse(text: str) -> Override:
    """Parse one override. Cost: about 0.3 ms, once for each distinct text.

    Raises:
        UserError: the text does not follow Hydra's grammar.
    """
    try:
        return OverridesParser.create().parse_override(text)
    except (HydraException, ValueError, RecursionError) as error:
        raise unreadable(text, error) from None


def unreadable(text: str, error: Exception) -> UserError:
    """Return in one line why an override can't be read.

    Python refuses numbers of more than 4300 digits, and lists within more lists than it has stack.
    """
    said = " ".join(str(error).split())
    if not isinstance(error, HydraException):
        said = said.partition(";")[0]
    return UserError(f"override {brief(repr(text), 200)} can't be read: {said}")


def shown(point: Mapping[str, Any]) -> str:
    """Return a point for a message: ``lr=0.001, optimizer=muon``."""
    return ", ".join(
        f"{brief(key.rsplit('.', 1)[-1])}={brief(value)}" for key, value in point.items()
    )


def brief(value: object, longest: int = 60) -> str:
    """Return a value for a table or message: printable, and of at most so many characters."""
    text = str(value)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= longest else text[: longest - 1] + "…"
