"""Whether a launch still reads what the user wrote, or is past that and at work on it.

What is raised before is about the user's input. What is raised after is a bug of ours or of the
task's, and shows its traceback.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

_FULL_ERROR = "HYDRA_FULL_ERROR"
"""Where 1 has Hydra let an error through, instead of printing it in its own many lines."""


@dataclass
class Launch:
    """One launch; Hydra calls ours in between, and hands nothing through."""

    found: str | None
    """What ``HYDRA_FULL_ERROR`` was before."""
    is_at_work: bool = False
    """Whether its input is read and checked."""

    @property
    def in_full(self) -> bool:
        """Whether the user asked for tracebacks."""
        return self.found == "1"


_LAUNCH: ContextVar[Launch | None] = ContextVar("launch", default=None)


@contextmanager
def launching() -> Iterator[Launch]:
    """Yield the launch under way until the block ends; Hydra lets errors through meanwhile."""
    launch = Launch(os.environ.get(_FULL_ERROR))
    token = _LAUNCH.set(launch)
    os.environ[_FULL_ERROR] = "1"
    try:
        yield launch
    finally:
        _put_back(launch.found)
        _LAUNCH.reset(token)


@contextmanager
def environment_as_found() -> Iterator[None]:
    """Have the environment as the launch found it for a while: what is started inherits it."""
    launch = _LAUNCH.get()
    if launch is None:
        yield
        return
    _put_back(launch.found)
    try:
        yield
    finally:
        os.environ[_FULL_ERROR] = "1"


def _put_back(found: str | None) -> None:
    if found is None:
        os.environ.pop(_FULL_ERROR, None)
    else:
        os.environ[_FULL_ERROR] = found


def begin_work() -> None:
    """Say that the input of the launch under way, if any, is read and checked."""
    launch = _LAUNCH.get()
    if launch is not None:
        launch.is_at_work = True
