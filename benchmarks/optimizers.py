"""What a step of each optimizer costs, beside the best public alternative and beside the machine.

Every optimizer of the registry steps on the parameters of GPTs with random gradients. Where torch
has the same algorithm, its fastest form is found first and then takes turns with ours: the ratio is
the median over the turns of theirs / ours, with its least and greatest. Muon's other side on a CPU
is the same algorithm one matrix after the other; DAP's is its own iterative inverse. A name with
``+clip`` also limits the gradients' norm, ours within the step. Each step finds cold caches.

A step must at least read the gradient and read and write weights and state: that is its floor, set
against a copy on the same device (which half consists of writes; reads are quicker, so that more
than all of it is possible). Matrix products are counted by torch, without factorisations, and set
against a large product in the same type. On a CPU the models keep few of their equal blocks.
Medians leave out what fewer than half of the steps do, such as SOAP's refresh of its bases; the
JSON line has the mean, too.

    python benchmarks/optimizers.py [--quick] [--device cuda] [--sizes gpt-small gpt-medium]
        [--optimizers muon adamw] [--blocks N] [--compile] [--out results/MACHINE-optimizers.txt]
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from statistics import fmean, median

import torch
from clock import Clock, Timing, clock_of, copy_rate, host_seconds, product_rate
from contenders import Builder, Contender, Shapes, ours, peers, step_flops, torch_muon
from report import Report, columns

from trainer.optim.params import REGISTRY
from trainer.presets import SIZES

CPU_ADAMW, CPU_MUON, CPU_TORCH_MUON, POLAR_FACTORS = 0.95, 1.2, 50.0, 1.05
"""Least ratios on a CPU (AdamW's is 1 less what two equal sides differ by), and most products of
muonmax-momo in units of muon's."""

CUDA_ADAMW_CLIP, CUDA_MUON, CUDA_DAP = 1.15, {"gpt-small": 2.0, "gpt-medium": 1.3}, 5.0
"""Least ratios on a GPU."""

CPU_BLOCKS = {"gpt-small": 1, "gpt-medium": 1, "gpt-large": 1}
"""A block of gpt-small is 0.13 TFLOPs of a polar factor: a second of two cores."""

NATIVE_BF16 = 0.1
"""A CPU whose bf16 product is slower than this part of its fp32 one has no units for it."""


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
    def measure(cls, device: torch.device) -> Device:
        """Time a copy and a large product."""
        clock = clock_of(device)
        small = [product_rate(clock, device, d, 256) for d in (torch.bfloat16, torch.float32)]
        if device.type == "cuda":
            product = product_rate(clock, device, torch.bfloat16, 8192)
        else:
            product = product_rate(clock, device, torch.float32, 2048)
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

    HEADER = (
        "shapes",
        "optimizer",
        "ms",
        "host ms",
        "beside",
        "ms",
        "ratio",
        "least–greatest",
        "state B",
        "floor B",
        "GB/s",
        "of copy",
        "GFLOP",
        "of product",
        "budget",
    )
    RIGHT = (2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14)

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

    def cells(self, device: Device) -> tuple[str, ...]:
        """Return the table's row."""
        taken, ratios, theirs = self.timing.seconds, self.timing.ratios, self.timing.theirs
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
            f"{self.host_s * 1e3:.3g}" if self.host_s == self.host_s else "",
            *beside,
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


@dataclass(frozen=True)
class Bench:
    """What is asked for."""

    device: Device
    limit: float
    """Seconds for the turns of one row."""
    compiled: bool

    def rows(self, name: str, shapes: Shapes) -> Iterator[Row]:
        """Measure one optimizer, and again with clipping where it has its own."""
        device = self.device.torch_device
        flops = step_flops(name, shapes, device)
        beside = self._fastest(peers(name, shapes, device, compiled=self.compiled))
        contender = ours(name, shapes, device)
        yield self._row(name, shapes, contender, beside, flops, clip=False)
        if contender.clips_in_step and beside is not None:
            yield self._row(f"{name}+clip", shapes, contender, beside, flops, clip=True)

    def muon_as_shipped(self, shapes: Shapes) -> Row:
        """Time torch's Muon as it is, in bf16: once without units for that, else in turns."""
        device, clock = self.device.torch_device, self.device.clock
        contender, shipped = ours("muon", shapes, device), torch_muon(shapes, device)
        slow = self.device.bf16 < NATIVE_BF16
        timing = clock.in_turns(contender.side(), None if slow else shipped.side(), self.limit)
        if slow:
            timing = Timing([timing.seconds], [clock.seconds(shipped.side())])
        return Row(
            shapes,
            "muon",
            timing,
            "torch Muon eager",
            nan,
            contender.count,
            contender.state_bytes,
            step_flops("muon", shapes, device),
            CPU_TORCH_MUON if slow else None,
        )

    def _row(
        self,
        name: str,
        shapes: Shapes,
        contender: Contender,
        beside: Contender | None,
        flops: float,
        *,
        clip: bool,
    ) -> Row:
        side = contender.side(clip=clip)
        theirs = None if beside is None else beside.side(clip=clip)
        timing = self.device.clock.in_turns(side, theirs, self.limit)
        host = host_seconds(side, self.device.torch_device) if self.device.is_cuda else nan
        return Row(
            shapes,
            name,
            timing,
            "" if beside is None else beside.label,
            host,
            contender.count,
            contender.state_bytes,
            flops,
            least_ratio(name, shapes, self.device),
        )

    def _fastest(self, builders: Sequence[Builder]) -> Contender | None:
        """Build all, and keep the one whose step is the fastest after a first."""
        best, least = None, float("inf")
        for build in builders:
            contender = build()
            if len(builders) == 1:
                return contender
            _, *later = (self.device.clock.seconds(contender.side()) for _ in range(3))
            if min(later) < least:
                best, least = contender, min(later)
        return best


def least_ratio(name: str, shapes: Shapes, device: Device) -> float | None:
    """Return the budget of theirs / ours."""
    if device.is_cuda:
        whole = shapes.config.n_layer == SIZES[shapes.size].n_layer
        budgets = {"adamw+clip": CUDA_ADAMW_CLIP, "dap-ns-nadam": CUDA_DAP}
        if name == "muon" and whole:
            return CUDA_MUON.get(shapes.size)
        return budgets.get(name)
    if name == "muon" and shapes.blocks_only:
        return CPU_MUON
    return CPU_ADAMW if name == "adamw" else None


def muonmax_products(report: Report, shapes: Shapes, device: torch.device) -> None:
    """Count whether muonmax-momo takes one polar factor a step, as muon does."""
    names = ("muonmax-momo", "muon")
    if set(names) <= set(REGISTRY):
        maximal, plain = (step_flops(name, shapes, device) for name in names)
        meaning = "matrix products of muonmax-momo / muon: 1 for one polar factor, 2 for two"
        report.add("muonmax_polar_factors", maximal / plain, meaning, most=POLAR_FACTORS)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; what depends on the device gets its default here."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=found, choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="gpt-tiny alone, fewer turns")
    parser.add_argument("--sizes", nargs="+", choices=tuple(SIZES))
    parser.add_argument("--optimizers", nargs="+", choices=tuple(REGISTRY), default=tuple(REGISTRY))
    parser.add_argument(
        "--blocks", type=int, help="most blocks of a model [cuda: all; cpu: 2, of the larger 1]"
    )
    parser.add_argument(
        "--compile", action="store_true", help="try torch.compile for the other side (minutes)"
    )
    parser.add_argument("--out", type=Path, help="text file for the tables; JSON beside it")
    chosen = parser.parse_args(argv)
    cuda = chosen.device == "cuda"
    if chosen.sizes is None:
        larger = ["gpt-small", "gpt-medium"] if cuda else ["gpt-small"]
        chosen.sizes = ["gpt-tiny", *([] if chosen.quick else larger)]
    return chosen


def most_blocks(chosen: argparse.Namespace, size: str) -> int:
    """Return how many blocks of a model to keep."""
    if chosen.blocks is not None:
        return int(chosen.blocks)
    whole = SIZES[size].n_layer
    return whole if chosen.device == "cuda" else min(whole, CPU_BLOCKS.get(size, 2))


def measured(chosen: argparse.Namespace, device: Device) -> Iterator[Row]:
    """Measure what the command line asks for, telling the error stream of each row."""
    bench = Bench(device, 0.5 if chosen.quick else 1.5, chosen.compile)
    on_cpu = "muon" in chosen.optimizers and not device.is_cuda
    for size in chosen.sizes:
        shapes = Shapes.of(size, SIZES[size], most_blocks(chosen, size))
        for name in chosen.optimizers:
            yield from bench.rows(name, shapes)
            torch.compiler.reset()  # what is compiled holds on to its weights
            gc.collect()
        if on_cpu:
            yield from bench.rows("muon", replace(shapes, blocks_only=True))
    if on_cpu:
        size = "micro" if chosen.quick else "gpt-tiny"
        yield bench.muon_as_shipped(Shapes.of(size, SIZES[size], 1, blocks_only=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, report, and return the exit code."""
    chosen = parse(argv)
    # As a run trains by default; without effect on a CPU.
    torch.set_float32_matmul_precision("high")
    device = Device.measure(torch.device(chosen.device))
    report = Report("optimizers", device=device.described())
    rows, began = [], time.perf_counter()
    for row in measured(chosen, device):
        rows.append(row)
        row.report(report)
        elapsed = time.perf_counter() - began
        sys.stderr.write(f"{elapsed:5.0f} s  {row.shapes}: {row.name}\n")
    muonmax_products(report, Shapes.of("micro", SIZES["micro"], 1), device.torch_device)
    cells = [Row.HEADER, *(row.cells(device) for row in rows)]
    return report.end(columns(cells, Row.RIGHT), chosen.out)


if __name__ == "__main__":
    sys.exit(main())
