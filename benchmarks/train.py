"""How fast a training step is beside transformers' Llama of one shape, and what memory it takes.

Each side is a process of its own, which builds its model, compiles it where asked, and then takes
steps when it is its turn: forward, backward, a clip to norm 1 and AdamW, on the same tokens in the
same precision. Ours is the trainer's model with its optimizer, set up as a run's process is;
theirs is LlamaForCausalLM with torch's clip and its fused AdamW, eager and compiled (on a GPU layer
by layer, as ours is: the whole takes minutes). Figures are
medians over the turns, ratios medians of the turns' own ratios, since a shared machine's speed
changes more from minute to minute than from turn to turn. On a CPU compiling needs a C++ compiler;
where there is none, or no transformers, what needs it is left out, and the table says so.

MFU is the FLOPs of the formula in trainer/model/counts.py over the device's dense bf16 peak.

    python benchmarks/train.py [--quick] [--device cuda] [--sizes gpt-small gpt-medium]
        [--turns N] [--threads N] [--out results/MACHINE-train.txt]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import IO

import torch
from report import Report, columns, environment, workplace
from sides import CASES, LOCK, Case

from trainer.compute.compilation import has_compiler
from trainer.compute.throughput import peak_of
from trainer.kernels.backend import launch_fault
from trainer.model import flops_per_token, parameter_count

CPU_RATIO, CUDA_MFU = 1.15, {"gpt-medium": 0.5}
"""Least times the tokens per second of the faster Llama on a CPU, and least MFU on a GPU."""

TURNS = {"cpu": 9, "cuda": 12}
STEPS = {"cpu": 1, "cuda": 4}
"""Of a turn."""

COMPILED_PEER = "gpt-small"
"""Size whose Llama is compiled on a GPU, too."""

SIDES = ("ours", "ours, compiled", "llama", "llama, compiled")


@dataclass
class Side:
    """A process that steps one model."""

    name: str
    process: subprocess.Popen[str]
    seconds: list[float] = field(default_factory=list)
    """Of a step, turn by turn."""
    processor_seconds: list[float] = field(default_factory=list)
    """Of all its threads; they do not grow when others want the cores."""
    start_s: float = 0.0
    """From the process's start until it had stepped twice."""
    peak_bytes: float = 0.0
    """Largest memory: of the GPU, or the process's resident one beyond its imports."""
    fault: str = ""

    def asks(self, request: str) -> dict[str, float]:
        """Return the answer to a request; nothing, and a fault, when the process has gone."""
        if self.fault:
            return {}
        given, answers = self.process.stdin, self.process.stdout
        try:
            _stream(given).write(request + "\n")
            _stream(given).flush()
            line = _stream(answers).readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.fault = f"ended with code {self.process.wait()}"
            return {}
        answer: dict[str, float] = json.loads(line)
        return answer


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None, "the process has pipes"  # noqa: S101
    return stream


@contextmanager
def started(
    case: Case, names: Sequence[str], device: str, threads: int, lock: Path
) -> Iterator[list[Side]]:
    """Yield the sides, on a CPU ready; end them afterwards."""
    script = Path(__file__).with_name("sides.py")
    sides = []
    for name in names:
        arguments = [sys.executable, str(script), name, case.size, device, str(threads)]
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(**{LOCK: str(lock)}),
        )
        side = Side(name, process)
        sides.append(side)
        if device == "cpu":  # beside each other they would only get into each other's way
            side.start_s = side.asks("ready").get("seconds", 0.0)
    try:
        yield sides
    finally:
        for side in sides:
            side.process.kill()
            side.process.wait()
            _stream(side.process.stdin).close()
            _stream(side.process.stdout).close()


def measure(sides: list[Side], device: str, turns: int) -> None:
    """Time the sides A B C D A B C D …."""
    for side in sides:
        side.start_s = side.start_s or side.asks("ready").get("seconds", 0.0)
    for _ in range(turns):
        for side in sides:
            answer = side.asks(str(STEPS[device]))
            if answer:
                side.seconds.append(answer["seconds"] / STEPS[device])
                side.processor_seconds.append(answer["processor_seconds"] / STEPS[device])
    for side in sides:
        side.peak_bytes = side.asks("peak").get("bytes", 0.0)


def ratio(mine: Side, theirs: Side) -> float:
    """Return how much longer theirs takes, the median of the turns."""
    return median(b / a for a, b in zip(mine.seconds, theirs.seconds, strict=True))


def processor_ratio(mine: Side, theirs: Side) -> float:
    """Return how much more of the processor theirs takes, the median of the turns."""
    both = zip(mine.processor_seconds, theirs.processor_seconds, strict=True)
    return median(b / a for a, b in both)


def report_case(report: Report, case: Case, sides: list[Side], device: str) -> list[list[str]]:
    """Add a case's figures and return its rows of the table."""
    flops = flops_per_token(case.config, case.context)
    peak = peak_of(torch.cuda.get_device_name()) if device == "cuda" else None
    whole = [side for side in sides if side.seconds and not side.fault]
    ours = [side for side in whole if side.name.startswith("ours")]
    theirs = [side for side in whole if side.name.startswith("llama")]
    best = min(ours, key=lambda side: median(side.seconds), default=None)
    rows = []
    for side in sides:
        if side not in whole:
            rows.append([case.size, side.name, "-", "-", "-", "-", "-", side.fault])
            continue
        seconds = median(side.seconds)
        speed = case.tokens / seconds
        key = f"{case.size}_{side.name}".replace(", ", "_").replace("-", "_").replace(".", "_")
        report.add(f"{key}_tokens_per_s", speed, f"median of {len(side.seconds)} turns")
        report.add(f"{key}_peak_mb", side.peak_bytes / 1e6, "largest memory of the process")
        share = None
        if peak is not None:
            share = flops * speed / peak
            least = CUDA_MFU.get(case.size) if side is best else None
            report.add(f"{key}_mfu", share, f"of {peak / 1e12:.0f} TFLOP/s", least=least)
        rows.append(
            [
                case.size,
                side.name,
                f"{speed:.0f}",
                "-" if best is None else f"{ratio(best, side):.2f}",
                f"{flops * speed / 1e12:.3g}",
                "-" if share is None else f"{share:.1%}",
                f"{side.peak_bytes / 1e6:.0f}",
                f"{side.start_s:.0f} s until the third step",
            ]
        )
    if best is not None and theirs:
        faster = min(theirs, key=lambda side: ratio(best, side))
        least = CPU_RATIO if device == "cpu" else None
        name = f"{case.size}_ratio".replace("-", "_").replace(".", "_")
        said = f"{best.name} over {faster.name}, median of the turns"
        report.add(name, ratio(best, faster), said, least=least)
        frugal = min(theirs, key=lambda side: processor_ratio(best, side))
        said = f"{best.name} over {frugal.name} in processor time, median of the turns"
        name = name.replace("ratio", "processor_ratio")
        report.add(name, processor_ratio(best, frugal), said)
    return rows


def sides_of(size: str, *, quick: bool, device: str) -> tuple[list[str], list[str]]:
    """Return which sides a size has, and why others are left out."""
    names, notes = list(SIDES), []
    if importlib.util.find_spec("transformers") is None:
        names = [name for name in names if not name.startswith("llama")]
        notes.append("no Llama: transformers is not installed (optsweep[hf])")
    obstacle = _compiles_nothing(quick=quick, device=device)
    if obstacle:
        names = [name for name in names if "compiled" not in name]
        notes.append(f"nothing compiled: {obstacle}")
    if device == "cuda" and size != COMPILED_PEER and "llama, compiled" in names:
        names.remove("llama, compiled")
        notes.append(f"{size}: Llama only eager, to be done in time")
    return names, notes


def _compiles_nothing(*, quick: bool, device: str) -> str:
    """Return why nothing is compiled; empty where something is."""
    if device == "cuda":
        return launch_fault() or ""
    if quick:
        return "--quick"
    return "" if has_compiler() else "no C++ compiler"


def main() -> int:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a third of the turns, less compiled")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sizes", nargs="+", choices=sorted({case.size for case in CASES}))
    parser.add_argument("--turns", type=int, help="of each size")
    parser.add_argument("--threads", type=int, default=0, help="of each side; 0 is all cores")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    device = chosen.device
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device")
    turns = chosen.turns or TURNS[device] // (3 if chosen.quick else 1)
    report = Report("train", device={"device": device, "torch": torch.__version__})
    if device == "cuda":
        report.device["device"] = torch.cuda.get_device_name()
    head = ["size", "side", "tokens/s", "ours is", "TFLOP/s", "MFU", "peak MB", "note"]
    rows, notes = [head], []
    cases = [case for case in CASES if case.device == device]
    with workplace() as place, ExitStack() as running:
        groups = []
        for case in cases:
            if chosen.sizes and case.size not in chosen.sizes:
                continue
            names, left_out = sides_of(case.size, quick=chosen.quick, device=device)
            notes += [note for note in left_out if note not in notes]
            sides = started(case, names, device, chosen.threads, place / "lock")
            groups.append((case, running.enter_context(sides)))
        for case, group in groups:
            measure(group, device, turns)
            rows += report_case(report, case, group, device)
            notes.append(
                f"{case.size}: {parameter_count(case.config) / 1e6:.1f}M parameters, "
                f"batch {case.batch} x {case.context} tokens"
            )
    table = "\n".join([columns(rows, right=(2, 3, 4, 5, 6)), *notes])
    return report.end(table, chosen.out)


if __name__ == "__main__":
    sys.exit(main())
