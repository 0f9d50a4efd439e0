"""Rows of benchmarks/optimizers.py: what was measured, of which device, and what was not."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import isfinite, nan
from statistics import fmean, median

import torch
from clock import Clock, Timing, clock_of, copy_rate, product_rate
from contenders import Shapes
from report import Report

_ISA = ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY")


@dataclass(frozen=True)
class Device:
    """Where it is measured, and how fast that is."""

    torch_device: torch.device
    clock: Clock
    copy: float
    """Bytes per second, read and written."""
    product: float
    """FLOPs per second in the type that polar factors are computed in."""
    bf16: float
    """A bf16 product's rate over an fp32 one's, both small."""

    @classmethod
    def measure(cls, device: torch.device, *, quick: bool = False) -> Device:
        """Time a copy and a large product."""
        clock = clock_of(device, quick=quick)
        small = [product_rate(clock, device, d, 256) for d in (torch.bfloat16, torch.float32)]
        if device.type == "cuda":
            product = product_rate(clock, device, torch.bfloat16, 8192)
        else:
            product = product_rate(clock, device, torch.float32, 1024 if quick else 2048)
        return cls(device, clock, copy_rate(clock, device), product, small[0] / small[1])

    @property
    def is_cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.torch_device.type == "cuda"

    def described(self) -> dict[str, object]:
        """Return what identifies it, for the JSON line."""
        name = torch.cuda.get_device_name(self.torch_device) if self.is_cuda else "cpu"
        return {
            "device": name,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "copy_gb_per_s": round(self.copy / 1e9, 1),
            "product_tflop_per_s": round(self.product / 1e12, 3),
            "bf16_over_fp32": round(self.bf16, 3),
            "instructions": _held_back(),
        }


@dataclass(frozen=True)
class Row:
    """One optimizer on one set of shapes."""

    shapes: Shapes
    name: str
    timing: Timing
    peer: str
    host_s: float
    """Time that the host is busy with a step."""
    weights: int
    state: float
    """Bytes per weight."""
    flops: float
    """Of a step's matrix products."""
    least: float | None
    """Budget of the ratio."""
    inputs_s: float = nan
    """Time that a forward pass takes longer for what the optimizer gathers in it, on both sides."""

    HEADER = (
        "shapes",
        "optimizer",
        "ms",
        "host ms",
        "beside",
        "ms",
        "ratio",
        "least–greatest",
        "turns",
        "inputs ms",
        "ratio with",
        "state B",
        "floor B",
        "GB/s",
        "of copy",
        "GFLOP",
        "of product",
        "budget",
    )
    RIGHT = (2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17)

    @property
    def floor(self) -> float:
        """Bytes per weight that a step must move: gradient once, weight and state there and back.

        Weights and gradients are fp32.
        """
        return 4 + 8 + 2 * self.state

    @property
    def ratio(self) -> float:
        """Median of theirs / ours; NaN where nothing stands beside."""
        return median(self.timing.ratios) if self.timing.theirs else nan

    @property
    def ratio_with_inputs(self) -> float:
        """The same of a step and of what it gathers; NaN where it gathers nothing."""
        if not self.timing.theirs:
            return nan
        turns = zip(self.timing.ours, self.timing.theirs, strict=True)
        return median((b + self.inputs_s) / (a + self.inputs_s) for a, b in turns)

    def cells(self, device: Device) -> tuple[str, ...]:
        """Return the table's row."""
        taken, ratios, theirs = self.timing.seconds, self.timing.ratios, self.timing.theirs
        turns = self.timing.ours
        rate = self.floor * self.weights / taken
        verdict = "" if self.least is None else "ok" if self.ratio >= self.least else "MISSED"
        beside = ("", "", "", "")
        if ratios:
            spread = f"{ratios[0]:.2f}–{ratios[-1]:.2f}"
            beside = (self.peer, f"{median(theirs) * 1e3:.3g}", f"{self.ratio:.2f}", spread)
        return (
            str(self.shapes),
            self.name,
            f"{taken * 1e3:.3g}",
            _told(self.host_s * 1e3),
            *beside,
            str(len(turns)),
            _told(self.inputs_s * 1e3),
            _told(self.ratio_with_inputs),
            f"{self.state:.1f}",
            f"{self.floor:.1f}",
            f"{rate / 1e9:.3g}",
            f"{rate / device.copy:.0%}",
            f"{self.flops / 1e9:.3g}" if self.flops else "",
            f"{self.flops / taken / device.product:.0%}" if self.flops else "",
            "" if self.least is None else f">= {self.least:g} {verdict}",
        )

    def report(self, report: Report) -> None:
        """Add the figures."""
        key = f"{self.shapes.key}.{self.name}"
        turns = len(self.timing.ours)
        report.add(f"{key}.ms", self.timing.seconds * 1e3, f"median of {turns}")
        report.add(f"{key}.mean_ms", fmean(self.timing.ours) * 1e3, f"mean of {turns}")
        report.add(f"{key}.state_bytes", self.state, "per weight")
        report.add(f"{key}.gflop", self.flops / 1e9, "matrix products of a step")
        if self.timing.theirs:
            meaning = f"{self.peer} / ours, median of {len(self.timing.theirs)} turns"
            report.add(f"{key}.ratio", self.ratio, meaning, least=self.least)
            report.add(f"{key}.ratio_least", self.timing.ratios[0], "of the turns")
            report.add(f"{key}.ratio_greatest", self.timing.ratios[-1], "of the turns")
        if isfinite(self.inputs_s):
            meaning = "gathering of inputs, median of pairs of forward passes"
            report.add(f"{key}.inputs_ms", self.inputs_s * 1e3, meaning)
            report.add(f"{key}.ratio_with_inputs", self.ratio_with_inputs, "both on both sides")


@dataclass(frozen=True)
class Missing:
    """What there was no time for, or what failed."""

    shapes: Shapes
    name: str
    reason: str
    least: float | None = None
    """Budget of the ratio, which is missed then."""
    failed: bool = False
    """Whether it is not for want of time: no run with a failure is within its budgets."""

    def __str__(self) -> str:
        return f"not measured: {self.shapes}: {self.name}: {self.reason}"

    def report(self, report: Report) -> None:
        """Add a figure without a value."""
        name = f"{self.shapes.key}.{self.name}.ratio"
        report.add(name, nan, self.reason, least=0.0 if self.failed else self.least)


def _held_back() -> str:
    """Return what the environment tells torch's libraries not to use."""
    return " ".join(f"{name}={os.environ[name]}" for name in _ISA if name in os.environ) or "all"


def _told(value: float) -> str:
    return f"{value:.3g}" if isfinite(value) else ""
