"""Tokens for this machine's cores and GPUs, so that local workers never oversubscribe them.

A token is a locked file per core or GPU, shared by all sweeps of a user on the machine. The kernel
gives it back when its holder ends, however it ends.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

POLL_S = 0.2
"""Seconds between two looks for free tokens."""


def visible_gpus(
    devices: Path = Path("/dev"), of_wsl: Path = Path("/usr/lib/wsl/lib/libcuda.so.1")
) -> tuple[str, ...]:
    """Return the ids of this machine's NVIDIA GPUs that CUDA_VISIBLE_DEVICES leaves visible.

    Args:
        devices: where the kernel lists devices.
        of_wsl: the driver where Windows has the GPU, which is then no device of the kernel's.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        # As CUDA reads it: the list ends at the first id that is none, e.g. -1.
        ids = itertools.takewhile(lambda part: not part.startswith("-"), chosen.split(","))
        return tuple(part for part in ids if part)
    # CUDA counts those that it sees from 0. A container may have been given nvidia3 alone.
    count = sum(1 for _ in devices.glob("nvidia[0-9]*")) or int(of_wsl.exists())
    return tuple(map(str, range(count)))


def core_names() -> list[str]:
    """Return one token name for each core that this process may run on."""
    return [f"core-{number}" for number in sorted(os.sched_getaffinity(0))]


def acquire(names: Sequence[str], count: int) -> list[str]:
    """Wait until ``count`` of the tokens are free and take them until this process ends.

    All or none are taken, so that two waiting workers never hold half each.
    """
    while True:
        held: list[tuple[str, int]] = []
        for name in names:
            handle = _try_lock(name)
            if handle is not None:
                held.append((name, handle))
            if len(held) == count:
                return [name for name, _ in held]
        for _, handle in held:
            os.close(handle)
        time.sleep(POLL_S)


def _try_lock(name: str) -> int | None:
    folder = Path(tempfile.gettempdir()) / f"optsweep-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    handle = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle
