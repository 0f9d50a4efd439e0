"""Sweeps: what turns definitions into jobs, carries them out, and follows them.

The ``*.yaml`` beside this file are sweep definitions; ``python launch.py sweep=NAME`` launches one.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweeps.launch.entry import (
        HYDRAS_OWN,
        compose,
        explain,
        require_known_options,
        run_as_job,
        run_composed,
        use_frozen_tasks,
    )
    from sweeps.planning.phase import launching

__all__ = [
    "HYDRAS_OWN",
    "compose",
    "explain",
    "launching",
    "require_known_options",
    "run_as_job",
    "run_composed",
    "use_frozen_tasks",
]


def __getattr__(name: str) -> object:
    """Import launching where it is used: a worker must hear signals before that has been read."""
    if name in __all__:
        home = "sweeps.planning.phase" if name == "launching" else "sweeps.launch.entry"
        return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
