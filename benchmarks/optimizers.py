"""What a step of each optimizer costs, beside the best public alternative and beside the machine.

Every optimizer of the registry steps on the parameters of GPTs with random gradients. Where torch
has the same algorithm, its fastest eager form is found first and then takes turns with ours: the
ratio is the median over the turns of theirs / ours, with its least and greatest. A name with
``+clip`` also limits the gradients' norm, ours within the step. Each step finds cold caches.

Muon's other side on a CPU is the same algorithm one matrix after the other, and torch's as shipped.
DAP has no public alternative: its other side, "own ...", is this project's DAP with an iterative
inverse, allowed as many steps as its stopping rule takes; "inputs" is what either side gathers in
a forward pass, beside its step. Its budget on a GPU is for gpt-small and larger: at gpt-tiny the
inverses of 256 rows take as long as their launches, either way. Where ours is torch's own step,
the table says so. Torch's compiled AdamW comes last, so that it takes time from nothing else.

torch.optim.Muon multiplies in bf16. What that takes on a CPU without units for it, one that has
them tells with ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 ATEN_CPU_CAPABILITY=avx2 in
the environment, which holds for both sides and stands in the result.

A step must at least read the gradient and read and write weights and state: that is its floor, set
against a copy on the same device (which half consists of writes; reads are quicker, so that more
than all of it is possible). Matrix products are counted by torch, without factorisations, and set
against a large product in the same type. On a CPU the models keep few of their equal blocks.
Medians leave out what fewer than half of the steps do, such as SOAP's refresh of its bases; the
JSON line has the mean, too.

    python benchmarks/optimizers.py [--quick] [--device cuda] [--sizes gpt-small gpt-medium]
        [--optimizers muon adamw] [--blocks N] [--seconds N] [--compile-seconds N]
        [--out results/MACHINE-optimizers.txt]
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from math import inf, nan
from pathlib import Path
from statistics import median

import torch
from clock import OutOfTime, host_seconds, limited
from contenders import (
    Builder,
    Contender,
    Shapes,
    compiled_adamw,
    ours,
    peers,
    step_flops,
    torch_muon,
)
from report import Report, columns
from rows import Device, Missing, Row

from trainer.optim.params import REGISTRY
from trainer.presets import SIZES

CPU_ADAMW_CLIP, CPU_MUON, CPU_TORCH_MUON, POLAR_FACTORS = 1.0, 1.2, 50.0, 1.05
"""Least ratios on a CPU, and most products of muonmax-momo in units of muon's."""

CUDA_ADAMW_CLIP, CUDA_MUON = 1.15, {"gpt-small": 2.0, "gpt-medium": 1.3}
CUDA_DAP = {"gpt-small": 5.0, "gpt-medium": 5.0}
"""Least ratios on a GPU; of muon and DAP with all blocks, which launches do not bound."""

TURNS_S, LEAST_TURNS, QUICK_S = 1.5, 5, 70.0
"""Seconds for a row's turns without ``--seconds``, least turns with it, and what --quick sets."""

QUICK_VOCABULARY = 4096
"""Tokens of its models: drawing embeddings would take most of its time."""

TURNS_PART, MOST_SHARES = 0.3, 8.0
"""Of an equal share of the time that is left: what the turns of a row aim at; and what a job, with
all that it builds and compiles, ends at."""

COMPILE_S, COMPILED_SIZES = 40.0, ("gpt-tiny", "gpt-small")
"""Most seconds for torch to compile a step on CUDA, and at which sizes it is tried."""

CPU_BLOCKS = {"gpt-small": 1, "gpt-medium": 1, "gpt-large": 1}
"""A block of gpt-small is 0.13 TFLOPs of a polar factor: a second of two cores."""

COMPILED, SHIPPED = "adamw, torch's compiled", "muon, torch's as shipped"
"""Names of rows whose other side is a second one."""

NATIVE_BF16 = 0.1
"""A CPU whose bf16 product is slower than this part of its fp32 one has no units for it."""


@dataclass(frozen=True)
class Bench:
    """How to measure."""

    device: Device
    limit: float
    """Seconds for the turns of one row."""
    least: int | None = None
    """Turns that a row has at least; by default the clock's."""

    def rows(self, name: str, shapes: Shapes) -> Iterator[Row]:
        """Measure one optimizer, and again with clipping where it has its own."""
        device = self.device.torch_device
        flops = step_flops(name, shapes, device)
        beside = self._fastest(peers(name, shapes, device))
        contender = ours(name, shapes, device)
        row = self._row(name, shapes, contender, beside, flops)
        yield replace(row, inputs_s=self._gathering(contender))
        if contender.clips_in_step and beside is not None:
            yield self._row(f"{name}+clip", shapes, contender, beside, flops, clip=True)

    def muon_as_shipped(self, shapes: Shapes) -> Iterator[Row]:
        """Time ours and torch's Muon as it is, in bf16, in turns."""
        device = self.device.torch_device
        contender, shipped = ours("muon", shapes, device), torch_muon(shapes, device)
        yield self._row(SHIPPED, shapes, contender, shipped, step_flops("muon", shapes, device))

    def compiled(self, shapes: Shapes, seconds: float) -> Iterator[Row]:
        """Time ours and torch's compiled AdamW, if that compiles within so many seconds."""
        device = self.device.torch_device
        contender, beside = ours("adamw", shapes, device), compiled_adamw(shapes, device)
        with limited(seconds):
            for _ in range(2):  # the first step makes the state, and is another graph
                beside.step()
        yield self._row(COMPILED, shapes, contender, beside, 0.0)

    def _row(
        self,
        name: str,
        shapes: Shapes,
        contender: Contender,
        beside: Contender | None,
        flops: float,
        *,
        clip: bool = False,
    ) -> Row:
        side = contender.side(clip=clip)
        theirs = None if beside is None else beside.side(clip=clip)
        timing = self.device.clock.in_turns(side, theirs, self.limit, self.least)
        host = host_seconds(side, self.device.torch_device) if self.device.is_cuda else nan
        return Row(
            shapes,
            name,
            timing,
            self._label(contender, beside, clip=clip),
            host,
            contender.count,
            contender.state_bytes,
            flops,
            least_ratio(name, shapes, self.device),
        )

    def _label(self, contender: Contender, beside: Contender | None, *, clip: bool) -> str:
        """Name the other side; say where the two are one and the same code."""
        if beside is None:
            return ""
        pairs = zip(contender.optimizers, beside.optimizers, strict=False)
        inherits = all(isinstance(own, type(other)) for own, other in pairs)
        eager = beside.label.startswith("torch") and beside.label.endswith("fused")
        own = inherits and eager and not self.device.is_cuda
        if clip:
            return beside.label if beside.clips_in_step else f"{beside.label}, clip_grad_norm_"
        return f"{beside.label} (torch's own step)" if own else beside.label

    def _gathering(self, contender: Contender) -> float:
        """Return the seconds for which inputs are gathered; NaN where none are."""
        passes = contender.passes()
        if passes is None:
            return nan
        timing = self.device.clock.in_turns(*passes, self.limit, self.least)
        pairs = zip(timing.theirs, timing.ours, strict=True)
        return max(0.0, median(gathered - plain for gathered, plain in pairs))

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
        budgets = {"muon": CUDA_MUON, "dap-ns-nadam": CUDA_DAP}.get(name, {})
        least = budgets.get(shapes.size) if whole else None
        return CUDA_ADAMW_CLIP if name == "adamw+clip" else least
    if name == SHIPPED:
        return CPU_TORCH_MUON if device.bf16 < NATIVE_BF16 else None
    if name == "muon" and shapes.blocks_only:
        return CPU_MUON
    return CPU_ADAMW_CLIP if name == "adamw+clip" else None


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
    parser.add_argument(
        "--quick",
        action="store_true",
        help="micro alone with 4096 tokens, within 90 s of two idle cores",
    )
    parser.add_argument("--sizes", nargs="+", choices=tuple(SIZES))
    parser.add_argument("--optimizers", nargs="+", choices=tuple(REGISTRY), default=tuple(REGISTRY))
    parser.add_argument(
        "--blocks", type=int, help="most blocks of a model [cuda: all; cpu: 2, of the larger 1]"
    )
    parser.add_argument("--seconds", type=float, help="for all; what does not fit is listed")
    parser.add_argument(
        "--compile-seconds", type=float, help="for torch to compile an AdamW [cuda: 40; cpu: none]"
    )
    parser.add_argument("--out", type=Path, help="text file for the tables; JSON beside it")
    chosen = parser.parse_args(argv)
    cuda = chosen.device == "cuda"
    if chosen.sizes is None:
        larger = ["gpt-small", "gpt-medium"] if cuda else ["gpt-small"]
        chosen.sizes = ["micro"] if chosen.quick else ["gpt-tiny", *larger]
    if chosen.seconds is None and chosen.quick:
        chosen.seconds = QUICK_S
    if chosen.compile_seconds is None:
        chosen.compile_seconds = COMPILE_S if cuda else 0.0
    return chosen


def most_blocks(chosen: argparse.Namespace, size: str) -> int:
    """Return how many blocks of a model to keep."""
    if chosen.blocks is not None:
        return int(chosen.blocks)
    whole = SIZES[size].n_layer
    return whole if chosen.device == "cuda" else min(whole, CPU_BLOCKS.get(size, 2))


@dataclass(frozen=True)
class Job:
    """Rows that are measured together, or not at all."""

    shapes: Shapes
    names: tuple[str, ...]
    """Of the rows."""
    rows: Callable[[Bench], Iterator[Row]]


def jobs(chosen: argparse.Namespace, device: Device) -> Iterator[Job]:
    """List what the command line asks for; what has a budget comes first at each size."""
    on_cpu = "muon" in chosen.optimizers and not device.is_cuda
    for size in chosen.sizes:
        config = SIZES[size]
        if chosen.quick:
            config = replace(config, vocab_size=QUICK_VOCABULARY)
        shapes = Shapes.of(size, config, most_blocks(chosen, size))
        if on_cpu:
            yield _job("muon", replace(shapes, blocks_only=True), device)
        for name in sorted(chosen.optimizers, key=lambda name: _turn(name, shapes, device)):
            yield _job(name, shapes, device)
        if on_cpu and size == chosen.sizes[0]:
            yield _shipped_job("micro" if chosen.quick else "gpt-tiny")
    if chosen.compile_seconds and "adamw" in chosen.optimizers:
        for size in chosen.sizes:
            if size in COMPILED_SIZES:
                yield _compiled_job(chosen, size)


def _turn(name: str, shapes: Shapes, device: Device) -> int:
    if name == "soap":
        return 2  # its first step takes the eigenvectors of all matrices
    return 0 if any(least_ratio(n, shapes, device) for n in (name, f"{name}+clip")) else 1


def _job(name: str, shapes: Shapes, device: Device) -> Job:
    clipped = f"{name}+clip"
    names = (name, clipped) if least_ratio(clipped, shapes, device) else (name,)
    return Job(shapes, names, partial(Bench.rows, name=name, shapes=shapes))


def _shipped_job(size: str) -> Job:
    shapes = Shapes.of(size, SIZES[size], 1, blocks_only=True)
    return Job(shapes, (SHIPPED,), lambda bench: bench.muon_as_shipped(shapes))


def _compiled_job(chosen: argparse.Namespace, size: str) -> Job:
    shapes = Shapes.of(size, SIZES[size], most_blocks(chosen, size))
    rows = partial(Bench.compiled, shapes=shapes, seconds=chosen.compile_seconds)
    return Job(shapes, (COMPILED,), rows)


def measured(chosen: argparse.Namespace, device: Device, until: float) -> Iterator[Row | Missing]:
    """Do all jobs, such that they end about ``until``, on the clock of time.perf_counter."""
    waiting = list(jobs(chosen, device))
    for done, job in enumerate(waiting):
        left = until - time.perf_counter()
        share = left / (len(waiting) - done)
        bench = Bench(device, TURNS_S)
        most = left
        if left < inf:
            bench = replace(bench, limit=min(TURNS_S, TURNS_PART * share), least=LEAST_TURNS)
            last = job.names == (COMPILED,)
            most = left if last else min(left, MOST_SHARES * share)
        yield from _rows(job, bench, most)
        torch.compiler.reset()  # what is compiled holds on to its weights
        gc.collect()


def _rows(job: Job, bench: Bench, most: float) -> Iterator[Row | Missing]:
    """Do a job for at most so many seconds."""
    found: list[Row] = []
    reason, failed = "", False
    try:
        with limited(most) if most < inf else nullcontext():
            found.extend(job.rows(bench))
    except OutOfTime as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - the others are to be measured nevertheless
        reason, failed = f"{type(error).__name__}: {error}".partition("\n")[0], True
    yield from found
    for name in job.names:
        if name not in {row.name for row in found}:
            least = least_ratio(name, job.shapes, bench.device)
            yield Missing(job.shapes, name, reason, least, failed)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, report, and return the exit code."""
    began = time.perf_counter()
    chosen = parse(argv)
    # As a run trains by default; without effect on a CPU.
    torch.set_float32_matmul_precision("high")
    device = Device.measure(torch.device(chosen.device), quick=chosen.quick)
    report = Report("optimizers", device=device.described())
    muonmax_products(report, Shapes.of("micro", SIZES["micro"], 1), device.torch_device)
    rows, missing, table = [], [], ""
    until = inf if chosen.seconds is None else began + chosen.seconds
    for entry in measured(chosen, device, until):
        entry.report(report)
        if isinstance(entry, Row):
            rows.append(entry)
        else:
            missing.append(str(entry))
        sys.stderr.write(f"{time.perf_counter() - began:5.0f} s  {entry.shapes}: {entry.name}\n")
        cells = [Row.HEADER, *(row.cells(device) for row in rows)]
        table = "\n".join([columns(cells, Row.RIGHT), *missing])
        if chosen.out is not None:  # what is measured stays, whatever comes later
            report.write(table, chosen.out)
    return report.end(table, chosen.out)


if __name__ == "__main__":
    sys.exit(main())
