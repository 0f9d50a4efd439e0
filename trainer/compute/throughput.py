"""How fast a run is, how much of the device it uses, and how much memory it takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

PEAKS = {
    "GB300": 2500e12,
    "GB200": 2500e12,
    "B300": 2250e12,
    "B200": 2250e12,
    "B100": 1750e12,
    "GH200": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A40": 150e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "MI300X": 1307e12,
    "MI250X": 191.5e12,
}
"""FLOP/s of dense bf16 products from the makers' data sheets, by words of the device's name; the
first that fits counts. SXM where no form is named; of an MI250X one of its two halves, which are
a device each."""


def peak_flops(device: torch.device) -> float | None:
    """Return the FLOP/s that a device could reach in bf16; None where that is not on record."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """Return the bf16 peak of a device of this name, in FLOP/s.

    None for one that is not listed, and for part of one: MIG's slices have a share of the peak.
    """
    words = name.replace("-", " ").split()
    if "MIG" in words:
        return None
    for part, peak in PEAKS.items():
        if all(word in words for word in part.split()):
            return peak
    return None


def forget_peak_memory(device: torch.device) -> None:
    """Count from what CUDA has allocated now; a process may have trained before."""
    if device.type == "cuda":
        # The allocator's figures ask for it, and do not do it.
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes in use so far: allocated on CUDA, resident of the process on a CPU.

    None where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    # Not getrusage's, which a process inherits from the one that it replaced.
    kib = [line.split()[1] for line in text.splitlines() if line.startswith("VmHWM:")]
    return int(kib[0]) * 1024 if kib else None


class Pace:
    """Mean time of a step since it was last asked, without validation and saving."""

    def __init__(self, tokens_per_step: int, flops_per_token: float, peak: float | None) -> None:
        """Start the clock.

        Args:
            tokens_per_step: over all ranks.
            flops_per_token: of the model, forward and backward.
            peak: FLOP/s of all the ranks' devices; None where it is not known.
        """
        self.tokens_per_step = tokens_per_step
        self._flops, self._peak = flops_per_token, peak
        self._steps, self._since = 0, time.perf_counter()

    def count(self) -> None:
        """Another step is done."""
        self._steps += 1

    def take(self) -> dict[str, float]:
        """Return the figures of the steps since the last call.

        step_time in seconds, tokens_per_second, and mfu, the share of the peak that the model's
        own FLOPs make up, where the peak is known.
        """
        now = time.perf_counter()
        mean = (now - self._since) / max(1, self._steps)
        self._steps, self._since = 0, now
        speed = self.tokens_per_step / mean
        figures = {"step_time": mean, "tokens_per_second": speed}
        if self._peak is not None:
            figures["mfu"] = speed * self._flops / self._peak
        return figures

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time spent in the block."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began
