"""The functions that a config names: ``task`` does a run's work, ``check`` looks at its config.

    task:  package.module.function(config: dict, run: rundir.Run) -> None
    check: package.module.function(config: dict) -> None, raises rundir.UserError; optional. If it
           has a parameter world_size, it is told how many processes the run will have; if it has
           one here, whether they will be on this machine.

``check`` is called at launch, on the login node, for every run; it must not import heavy packages.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from rundir import OptsweepError, UserError, require
from sweeps.planning.identity import task_config


def load(dotted: object, key: str) -> Callable[..., Any]:
    """Import the function with this dotted name.

    Args:
        dotted: ``package.module.function``.
        key: the config key that names it, for messages.
    """
    if not isinstance(dotted, str) or "." not in dotted:
        raise UserError(
            f"{key} = {dotted!r}; must be a dotted name such as package.module.function"
        )
    module_name, _, name = dotted.rpartition(".")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except ModuleNotFoundError as error:
        raise UserError(f"{key} = {dotted}; there is no module {error.name}") from None
    except AttributeError:
        raise UserError(f"{key} = {dotted}; module {module_name} has no {name}") from None
    if not callable(function):
        raise UserError(f"{key} = {dotted}; must be a function, is a {type(function).__name__}")
    checked: Callable[..., Any] = function
    return checked


_NODES = ("cluster", "paths")
"""Keys of the config below which the engine reads its own settings."""


def check(resolved: Mapping[str, Any], *, here: bool = True) -> None:
    """Let the task look at a run's config before anything is submitted or written.

    Args:
        resolved: the config.
        here: whether the run is to be carried out on this machine.

    Raises:
        UserError: a node of the engine's is no mapping; what the task's check says, or which other
            error it ended in: a value of a type that it did not expect is the user's mistake, and
            no traceback tells more of it.
    """
    for key in _NODES:
        node = resolved.get(key) or {}
        must = f"a mapping; {key}=NAME chooses an option of the group"
        require(isinstance(node, Mapping), key, node, must)
    dotted = resolved.get("check")
    if dotted is not None:
        with _as_user_errors(f"check {dotted} failed"):
            function = load(dotted, "check")
            told = {"world_size": _world_size(resolved), "here": here}
            wanted = _parameters(function)
            function(task_config(resolved), **{k: told[k] for k in told if k in wanted})
    with _as_user_errors(f"task = {resolved.get('task')}; looking for it failed"):
        _check_exists(resolved.get("task"))


@contextmanager
def _as_user_errors(what: str) -> Iterator[None]:
    """Turn any error of the user's code into one line."""
    try:
        yield
    except OptsweepError:
        raise
    except Exception as error:
        said = ": ".join(text for text in (type(error).__name__, str(error)) if text)
        raise UserError(f"{what}: {said}") from error


def _world_size(resolved: Mapping[str, Any]) -> int:
    """Return how many processes the run will have."""
    cluster = resolved.get("cluster") or {}
    shape = [cluster.get(name) for name in ("nodes", "tasks_per_node")]
    return math.prod(n for n in shape if isinstance(n, int))


def origin(dotted: str) -> tuple[Path, str] | None:
    """Return the directory that a task's top-level package or module lies in, and its name.

    None for what is installed: its version is on record, its files stay as they are. Imports
    nothing.
    """
    package, *rest = dotted.split(".")[:-1] or [""]
    spec = importlib.util.find_spec(package) if package else None
    if spec is None:
        return None
    if spec.submodule_search_locations is None:
        folders = [Path(spec.origin)] if spec.has_location and spec.origin else []
    else:
        folders = [Path(folder) for folder in spec.submodule_search_locations]
    if rest:  # a namespace package may lie in several directories
        holding = [f for f in folders if (f / rest[0]).is_dir() or (f / f"{rest[0]}.py").is_file()]
        folders = holding or folders
    place = folders[0].parent.resolve() if folders else None
    return None if place is None or is_installed(place) else (place, package)


def is_installed(place: Path) -> bool:
    """Say whether a directory belongs to Python or to what was installed for it."""
    library = Path(sysconfig.get_path("stdlib")).resolve()
    named = {"site-packages", "dist-packages"}
    return not named.isdisjoint(place.parts) or library in (place, *place.parents)


@lru_cache
def _parameters(check: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(check).parameters)


@lru_cache
def _check_exists(dotted: object) -> None:
    """Look whether the task is there, importing its module only if it is in memory already."""
    module, _, _ = dotted.rpartition(".") if isinstance(dotted, str) else ("", "", "")
    try:
        is_there = bool(module) and importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        is_there = False
    if not is_there or module in sys.modules:
        load(dotted, "task")
