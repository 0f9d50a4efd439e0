"""submitit's SLURM executor, told to wait no longer than a minute for sbatch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SBATCH_S = 60
"""Seconds that sbatch may take: out of job slots, it would sleep and retry for hours."""


def array_executor(folder: Path) -> Any:
    """Return an executor that writes and submits sbatch scripts.

    Cost: 0.15 s, to import submitit.
    """
    import submitit

    class ArrayExecutor(submitit.SlurmExecutor):
        def _make_submission_command(self, submission_file_path: Path) -> list[str]:
            return ["timeout", str(SBATCH_S), "sbatch", str(submission_file_path)]

    return ArrayExecutor(folder=folder)
