"""Sweeps: what turns definitions into jobs, carries them out, and follows them.

The ``*.yaml`` beside this file are sweep definitions; ``python launch.py sweep=NAME`` launches one.
"""

from sweeps.launch.entry import compose, explain, run_as_job, run_composed, use_frozen_tasks

__all__ = ["compose", "explain", "run_as_job", "run_composed", "use_frozen_tasks"]
