"""What the time of a few steps goes into, by torch.profiler: ``training_params.profile_steps``."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

log = logging.getLogger(__name__)

DIRECTORY, TRACE = "profile", "trace.json"
"""Below the run directory; ``chrome://tracing`` and https://ui.perfetto.dev show it."""

WARM_UP = 3
"""Steps of an attempt that are not recorded: the first ones allocate and compile."""

ROWS = 20
"""Of the table in the log: the operations that take longest by themselves."""


class Stepper(Protocol):
    """What is told that a step is over."""

    def step(self) -> None:
        """Another step is done."""


class _Idle:
    def step(self) -> None:
        """Nothing is recorded."""


@contextmanager
def profiling(steps: int, directory: Path, device: torch.device) -> Iterator[Stepper]:
    """Record ``steps`` steps after WARM_UP others; none for 0.

    Args:
        steps: to record; fewer where the block ends before.
        directory: of the run.
        device: whose kernels are recorded beside the host's calls.
    """
    if not steps:
        yield _Idle()
        return
    kinds = torch.profiler.ProfilerActivity
    on_cuda = device.type == "cuda"

    def keep(profile: torch.profiler.profile) -> None:
        target = directory / DIRECTORY
        target.mkdir(exist_ok=True)
        profile.export_chrome_trace(str(target / TRACE))
        table = profile.key_averages().table(
            sort_by=f"self_{'cuda' if on_cuda else 'cpu'}_time_total", row_limit=ROWS
        )
        log.info("%d steps profiled, see %s\n%s", steps, target / TRACE, table)

    with torch.profiler.profile(
        activities=[kinds.CPU, kinds.CUDA] if on_cuda else [kinds.CPU],
        schedule=torch.profiler.schedule(wait=WARM_UP - 1, warmup=1, active=steps, repeat=1),
        on_trace_ready=keep,
        profile_memory=True,
        experimental_config=_all_threads(),
    ) as profile:
        yield profile


def _all_threads() -> Any:
    """Return the setting that has other threads' operators in the profile; None before torch 2.8.

    Each thread of a CPU may have rows of its own, see :mod:`trainer.compute.rows`.
    """
    try:
        return torch._C._profiler._ExperimentalConfig(profile_all_threads=True)  # noqa: SLF001
    except TypeError:
        return None
