"""What a DAP step costs by each way to take the inverse: ``python benchmarks/dap.py [SHAPES ...]``.

The damped inverse by Cholesky, as triangular solves and from blocks of several sizes, beside the
iterations that it replaces. Needs torch and numpy only. Medians of 10 after 2 to warm up, each the
whole step on random gradients and inputs; on CUDA between events.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from trainer.config import GPTConfig
from trainer.model import GPT
from trainer.optim import build_optimizer, cholesky, curvature, optimizer_params

SHAPES = {"gpt-tiny": (256, 2, 4), "gpt-small": (768, 12, 12), "gpt-medium": (1024, 24, 16)}
"""Width, blocks and heads; the vocabulary is of bytes, since embeddings are not DAP's."""

ITERATIONS: dict[str, dict[str, Any]] = {
    "newton (accelerated: false)": {"accelerated": False},
    "chebyshev (accelerated: true)": {"accelerated": True},
    "gptopt_compat": {"gptopt_compat": True},
}


WAYS: tuple[tuple[cholesky.Way, int], ...] = (
    ("solve", cholesky.BLOCK),
    *(("blocks", size) for size in (64, 128, 256, 512)),
    ("triton", 128),
)


def main() -> None:
    """Print a line for each way and shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", help=f"of {', '.join(SHAPES)}; gpt-tiny if none")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.set_num_threads(1)
    for shapes in args.shapes or ["gpt-tiny"]:
        on = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu, 1 thread"
        say(f"{shapes} on {on}, torch {torch.__version__}")
        compare(shapes, device)


def compare(shapes: str, device: torch.device) -> None:
    """Time every way at one model's shapes."""
    best = float("inf")
    ways = WAYS if device.type == "cuda" else WAYS[:-1]
    for way, size in ways:
        damped = functools.partial(cholesky.DampedInverse, way=way)
        with (
            mock.patch.object(curvature, "DampedInverse", damped),
            mock.patch.object(cholesky, "BLOCK", size),
        ):
            spent = step_time(shapes, device, {})
        best = min(best, spent)
        say(f"  cholesky, {way:24} {size:4} {spent:9.2f} ms")
    for label, values in ITERATIONS.items():
        spent = step_time(shapes, device, values)
        say(f"  {label:39} {spent:9.2f} ms, {spent / best:.1f} times the best of these")
    spent = step_time(shapes, device, {"disable_preconditioning": True})
    say(f"  {'no preconditioning':39} {spent:9.2f} ms")


def say(line: str) -> None:
    """Print at once: a run takes minutes."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def step_time(shapes: str, device: torch.device, values: dict[str, Any]) -> float:
    """Return the median milliseconds of a step."""
    width, blocks, heads = SHAPES[shapes]
    torch.manual_seed(0)
    config = GPTConfig(n_embd=width, n_layer=blocks, n_head=heads, vocab_size=256)
    model = GPT(config, 128).to(device)
    params = optimizer_params({"name": "dap-ns-nadam", "lr": 1e-4, **values}, "")
    optimizer = build_optimizer(model, params)
    tokens = torch.randint(0, 256, (4, 128), device=device)
    spent = []
    for _ in range(12):
        optimizer.zero_grad()
        model(tokens, tokens).backward()
        spent.append(timed(optimizer.step, device))
    return statistics.median(spent[2:])


def timed(action: Callable[[], object], device: torch.device) -> float:
    """Return the milliseconds that the action takes."""
    if device.type != "cuda":
        began = time.thread_time()
        action()
        return 1e3 * (time.thread_time() - began)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    first.record()
    action()
    last.record()
    torch.cuda.synchronize(device)
    return float(first.elapsed_time(last))


if __name__ == "__main__":
    main()
