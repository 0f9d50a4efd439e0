"""A grid in a JSON file, ``{name: [values], …}``: the ``params_file`` of a block.

    params_file: lr.json
    params_file: {path: lr.json, keys: {lr: optimizer.optimizer_params.lr}}

A name is a config key, unless ``keys`` says which one it stands for.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rundir import IllegalValue, UserError, unknown

_KEYS = ("keys", "path")

_MAX_PATH_BYTES = 1000
"""A quarter of what Linux takes: a folder is put in front."""

_MAX_NAME_BYTES = 255


def read(given: object, where: str, folders: Sequence[Path]) -> dict[str, list[Any]] | None:
    """Return the grid in the file that ``given`` names; None where none is named.

    Args:
        given: the path, or a mapping of ``path`` and ``keys``.
        where: how to call it in messages.
        folders: where to look, in this order.

    Raises:
        UserError: no such file, or what is wrong in which line of it.
    """
    if given is None:
        return None
    path, keys = _parts(given, where)
    file = next((folder / path for folder in folders if (folder / path).is_file()), None)
    if file is None:
        looked = ", ".join(str(folder.absolute()) for folder in dict.fromkeys(folders)) or "nowhere"
        raise UserError(f"{where} = {path!r}; there is no such file in {looked}")
    text = _text(file)
    grid = _grid(text, file)
    for name in keys:
        if name not in grid:
            raise unknown("name", name, grid, f"{where}.keys")
    named = {keys.get(name, name): values for name, values in grid.items()}
    if len(named) < len(grid):
        raise UserError(f"{where}.keys gives one config key to two names of {file}")
    return named


def _parts(given: object, where: str) -> tuple[str, Mapping[str, str]]:
    whole = given if isinstance(given, Mapping) else {"path": given}
    for key in whole:
        if key not in _KEYS:
            raise unknown("key", str(key), _KEYS, where)
    path, keys = whole.get("path"), whole.get("keys") or {}
    if not isinstance(path, str) or not path or "\0" in path or _is_too_long(path):
        raise IllegalValue(where, path, "the path of a JSON file")
    if not isinstance(keys, Mapping) or not all(isinstance(key, str) for key in keys.values()):
        raise IllegalValue(f"{where}.keys", keys, "a mapping {name in the file: key}")
    return path, {str(name): str(key) for name, key in keys.items()}


def _is_too_long(path: str) -> bool:
    parts = [len(part.encode(errors="replace")) for part in path.split("/")]
    return sum(parts) > _MAX_PATH_BYTES or max(parts) > _MAX_NAME_BYTES


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}, line {line}: not UTF-8") from None
    except OSError as error:
        raise UserError(f"can't read {file}: {error.strerror}") from None


def _grid(text: str, file: Path) -> dict[str, list[Any]]:
    """Parse ``{name: [values]}``; a scalar is a list of one."""
    grid = _json(text, file)
    if not isinstance(grid, dict) or not grid:
        raise _error('must be {"name": [values], …} with at least one name', file, text, 0)
    for name, values in grid.items():
        if values == [] or isinstance(values, dict):
            must = f"{name} = {values!r}; must be a non-empty list of values"
            raise _error(must, file, text, max(0, text.find(json.dumps(name))))
    return {name: v if isinstance(v, list) else [v] for name, v in grid.items()}


def _json(text: str, file: Path) -> object:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for name, count in Counter(name for name, _ in pairs).items():
            if count > 1:
                place = text.rfind(json.dumps(name))
                raise _error(f"{name} is there twice", file, text, place)
        return dict(pairs)

    def constant(name: str) -> NoReturn:
        raise _error(f"{name} is no JSON value", file, text, text.index(name))

    def finite(number: str) -> float:
        if math.isinf(float(number)):
            raise _error(f"{number} is too large", file, text, text.index(number))
        return float(number)

    hooks: dict[str, Any] = {"parse_constant": constant, "parse_float": finite}
    try:
        return json.loads(text, object_pairs_hook=unique, **hooks)
    except json.JSONDecodeError as error:
        raise _error(error.msg, file, text, error.pos) from None
    except ValueError as error:  # a number of more digits than Python reads
        raise _error(str(error).partition(";")[0], file, text, 0) from None
    except RecursionError:
        raise _error("nested too deeply", file, text, 0) from None


def _error(reason: str, file: Path, text: str, place: int) -> UserError:
    line = 1 + text[:place].count("\n")
    return UserError(f"{file}, line {line}: {reason}")
