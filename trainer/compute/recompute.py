"""Which forward passes are done again, by activation checkpointing, on the way back.

What counts forward passes, such as DAP's look at each layer's inputs, must leave these out.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

_here = threading.local()  # backward runs in a thread of its own for each GPU


def is_recomputing() -> bool:
    """Say whether this thread repeats a forward pass whose activations were not kept."""
    return getattr(_here, "depth", 0) > 0


def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return what a checkpointed forward pass and its repetition run in."""
    return nullcontext(), _recomputing()


@contextmanager
def _recomputing() -> Iterator[None]:
    _here.depth = getattr(_here, "depth", 0) + 1
    try:
        yield
    finally:
        _here.depth -= 1
