"""Whether a launch still reads what the user wrote, or is past that and at work on it.

What is raised before is about the user's input. What is raised after is a bug of ours or of the
task's, and shows its traceback.
"""

from __future__ import annotations

_BEGUN: list[bool] = []


def begin_work() -> None:
    """Say that the input of this process's launch is read and checked."""
    _BEGUN.append(True)


def at_work() -> bool:
    """Say whether that is so."""
    return bool(_BEGUN)
