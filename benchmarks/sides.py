"""One side of benchmarks/train.py, a process that takes training steps when it is asked to.

    python benchmarks/sides.py SIDE SIZE DEVICE THREADS

It answers each line of stdin with a line of JSON: ``ready`` with the seconds since its start,
a number with the seconds of so many steps, ``peak`` with the bytes of memory that it took.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from trainer.config import GPTConfig
from trainer.presets import SIZES

Step = Callable[[], None]

LOCK = "BENCHMARK_LOCK"
"""Variable that names the file which a side locks while it is on the GPU."""

BEGAN = time.perf_counter()
LEARNING_RATE = 1e-4
WARM_UP = 2
"""Steps before the first turn: they compile, make the optimizer's state and fill the allocator."""


@dataclass(frozen=True)
class Case:
    """A shape and a batch."""

    size: str
    device: str
    config: GPTConfig
    batch: int
    context: int

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.batch * self.context


CASES = (
    Case("gpt-3.2M", "cpu", GPTConfig(n_embd=256, n_layer=4, n_head=4, vocab_size=256), 8, 256),
    Case("gpt-small", "cuda", SIZES["gpt-small"], 32, 1024),
    Case("gpt-medium", "cuda", SIZES["gpt-medium"], 16, 1024),
)


def ours(case: Case, device: str, *, compiles: bool) -> Step:
    """Return a step of the trainer's model and optimizer, set up as a run's process is."""
    import torch

    import trainer
    from trainer.compute.compilation import compiled
    from trainer.compute.rows import row_threads
    from trainer.model import GPT
    from trainer.optim import build_optimizer
    from trainer.optim.clipping import FoldsClip
    from trainer.optim.params import optimizer_params

    trainer.preload()
    with torch.device(device):
        model = GPT(case.config, case.context)
    params = optimizer_params({"name": "adamw", "lr": LEARNING_RATE}, "optimizer")
    optimizer = build_optimizer(model, params)
    forward = compiled(model, torch.device(device)) if compiles else model
    batch = _tokens(case, device)
    rows = None if compiles else row_threads(model, torch.device(device))

    def loss_of(batch: Any) -> Any:
        with _precision(device):
            return forward(*batch)

    def step() -> None:
        if rows is not None and rows.fits(case.batch):
            rows.backward(loss_of, batch)
        else:
            loss_of(batch).backward()
        if isinstance(optimizer, FoldsClip):
            optimizer.clip_grad_norm(1.0)
        else:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def llama(case: Case, device: str, *, compiles: bool) -> Step:
    """Return a step of transformers' Llama of the same shape with torch's fused AdamW."""
    import torch
    import transformers

    shape = case.config
    config = transformers.LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.n_embd,
        intermediate_size=shape.ffn_width,
        num_hidden_layers=shape.n_layer,
        num_attention_heads=shape.n_head,
        max_position_embeddings=case.context,
        rms_norm_eps=shape.norm_eps,
        tie_word_embeddings=shape.tie_embeddings,
    )
    with torch.device(device):
        model = transformers.LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, fused=True)
    forward: Callable[..., Any] = model
    if compiles and device == "cuda":
        for layer in model.model.layers:  # the whole takes minutes
            layer.compile()
    elif compiles:
        forward = torch.compile(model)
    inputs, targets = _tokens(case, device)

    def step() -> None:
        with _precision(device):
            output = forward(
                input_ids=inputs, labels=targets, shift_labels=targets, use_cache=False
            )
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _tokens(case: Case, device: str) -> Any:
    """Return inputs and targets (B, T), the same in every process."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (2, case.batch, case.context)
    return torch.randint(case.config.vocab_size, shape, generator=generator).to(device).unbind()


def _precision(device: str) -> Any:
    import torch

    return torch.autocast("cuda", dtype=torch.bfloat16) if device == "cuda" else nullcontext()


def _resident() -> int:
    """Return the bytes that this process has had in memory at most; 0 where nobody says."""
    import torch

    from trainer.compute.throughput import peak_memory

    return peak_memory(torch.device("cpu")) or 0


@contextmanager
def _alone(device: str) -> Iterator[None]:
    """Keep the other sides off a GPU, and leave its memory to them afterwards but for the state."""
    if device != "cuda":
        yield
        return
    import torch

    with open(os.environ[LOCK], "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def _timed(step: Step, count: int, device: str) -> dict[str, float]:
    """Return the seconds of so many steps; on a GPU after one that gets its memory back."""
    import torch

    with _alone(device):
        if device == "cuda":
            step()
            torch.cuda.synchronize()
        began, worked = time.perf_counter(), time.process_time()
        for _ in range(count):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        processor = time.process_time() - worked
        return {"seconds": time.perf_counter() - began, "processor_seconds": processor}


def serve(side: str, size: str, device: str, threads: int) -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints, prints elsewhere
    if side.startswith("ours"):
        # As trainer.preload() does; libgomp reads it when torch loads it.
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    import torch

    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    torch.set_float32_matmul_precision("high")  # of CUDA's float32, of which there is little
    case = next(case for case in CASES if case.size == size)
    build = ours if side.startswith("ours") else llama
    step = build(case, device, compiles="compiled" in side)
    imported = _resident()
    _timed(step, WARM_UP, device)
    for line in sys.stdin:
        request = line.strip()
        answer = {"seconds": time.perf_counter() - BEGAN}
        if request == "peak":
            cuda = device == "cuda"
            peak = torch.cuda.max_memory_allocated() if cuda else _resident() - imported
            answer = {"bytes": float(peak)}
        elif request != "ready":
            answer = _timed(step, int(request), device)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
