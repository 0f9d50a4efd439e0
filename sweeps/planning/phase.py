"""Whether a launch still reads what the user wrote, or is past that and at work on it.

What is raised before is about the user's input. What is raised after is a bug of ours or of the
task's, and shows its traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Launch:
    """One launch; Hydra calls ours in between, and hands nothing through."""

    is_at_work: bool = False
    """Whether its input is read and checked."""


_LAUNCH: ContextVar[Launch | None] = ContextVar("launch", default=None)


@contextmanager
def launching() -> Iterator[Launch]:
    """Yield the launch that :func:`begin_work` is about until the block ends."""
    launch = Launch()
    token = _LAUNCH.set(launch)
    try:
        yield launch
    finally:
        _LAUNCH.reset(token)


def begin_work() -> None:
    """Say that the input of the launch under way, if any, is read and checked."""
    launch = _LAUNCH.get()
    if launch is not None:
        launch.is_at_work = True
