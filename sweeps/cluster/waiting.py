"""What sweepers of Hydra other than the planner call: launch as theirs does, and wait."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from sweeps.cluster import scheduler
from sweeps.cluster.clusters import require_printable
from sweeps.planning.phase import begin_work, environment_as_found

NO_LIMIT_MIN = 60 * 24 * 3650
"""Stands for no limit where submitit wants a number of minutes."""


class _Result(JobReturn):
    """A result that raises a job's error without printing the job's overrides before."""

    @property  # type: ignore[misc] # nobody sets it
    def return_value(self) -> Any:
        """What the job returned.

        Raises:
            Exception: what it ended in.
        """
        if self.status is JobStatus.FAILED:
            raise self._return_value
        return super().return_value


class Waiting:
    """What other sweepers than the planner call: launch as theirs does, and wait."""

    params: dict[str, Any]
    their_config: type
    """The dataclass of the fields that their launcher knows."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Launch the jobs and return their results."""
        names = {field.name for field in fields(self.their_config)}
        self.params = {key: value for key, value in self.params.items() if key in names}
        require_printable(self.params)
        begin_work()
        self.params["timeout_min"] = self.params["timeout_min"] or NO_LIMIT_MIN
        with environment_as_found(), scheduler.clean_environment(), _without_warnings():
            results: Sequence[JobReturn] = super().launch(job_overrides, initial_job_idx)  # type: ignore[misc]
        return [_Result(**vars(result)) for result in results]


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep submitit silent, and the sacct that it asks how jobs stand.

    Where accounting is off, both would say so twice at each look; how a job ended is in its result.
    """
    from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

    class Watcher(SlurmInfoWatcher):
        def _make_command(self) -> list[str] | None:
            command = super()._make_command()
            return command and ["sh", "-c", '"$@" 2>/dev/null', "sh", *command]

    log, before = logging.getLogger("submitit"), SlurmJob.watcher
    level, SlurmJob.watcher = log.level, Watcher(before._delay_s)
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
        SlurmJob.watcher = before
