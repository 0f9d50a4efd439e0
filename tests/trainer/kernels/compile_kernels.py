"""Compile every kernel for GPUs that need not be there: compile_kernels.py DIRECTORY CAPABILITY...

Leaves CAPABILITY/NAME.ptx of each and what the assembler says of it, NAME.txt.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from trainer.kernels import elementwise_triton as elementwise
from trainer.kernels import norm_triton as norm
from trainer.kernels import numbers_triton as numbers
from trainer.kernels.chunks import BLOCK, CHUNK, CHUNK_COLUMNS, SLOT_COLUMNS, SUMS


@dataclass(frozen=True)
class Kernel:
    """One kernel as its launch specialises it."""

    fn: Any
    types: dict[str, str]
    """Of arguments other than fp32 numbers and constants; pointers are aligned to 16 bytes."""
    constants: dict[str, Any]
    options: dict[str, Any] = field(default_factory=lambda: {"num_warps": 4})


TABLES = {"chunks": "*i32", "slots": "*i64"}
LAYOUT = {"BLOCK": BLOCK, "SLOT_COLUMNS": SLOT_COLUMNS}
CHUNKED = {**LAYOUT, "CHUNK": CHUNK, "CHUNK_COLUMNS": CHUNK_COLUMNS}


def step(
    rule: str, phase: str = "whole", *, lr_in_memory: bool = False, divide: bool = True
) -> Kernel:
    return Kernel(
        elementwise.elementwise_kernel,
        {
            **TABLES,
            **dict.fromkeys(("corrections", "sums", "clip", "length"), "*fp32"),
            "first_chunk": "i32",
            **({"lr": "*fp32"} if lr_in_memory else {}),
        },
        {
            **CHUNKED,
            "SUMS": SUMS,
            "RULE": rule,
            "PHASE": phase,
            "DIVIDE": divide,
            "LR_IN_MEMORY": lr_in_memory,
        },
        {"num_warps": 4, "enable_fp_fusion": True},
    )


SLOTS = {**TABLES, "corrections": "*fp32", "first_slot": "i32", "count": "i32"}
SLOT_LAYOUT = {"BLOCK": 256, "SLOT_COLUMNS": SLOT_COLUMNS}
SUMMED = {
    **TABLES,
    **dict.fromkeys(("sums", "totals", "corrections"), "*fp32"),
    "first_slot": "i32",
}
SUM_LAYOUT = {**SLOT_LAYOUT, "SUMS": SUMS}


def corrections(rule: str, *, from_zero: bool = True, wide: bool = False) -> Kernel:
    constants = {"RULE": rule, "FROM_ZERO": from_zero, "WIDE": wide}
    return Kernel(numbers.corrections_kernel, SLOTS, {**SLOT_LAYOUT, **constants})


def free(*, lr_in_memory: bool) -> Kernel:
    types = {**SLOTS, "lr": "*fp32" if lr_in_memory else "fp32"}
    return Kernel(numbers.free_kernel, types, {**SLOT_LAYOUT, "LR_IN_MEMORY": lr_in_memory})


PHASES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("adam", "adamw", "nadam", "nadamw", "ademamix", "schedule-free"), ("whole",)),
    "lion": ("whole", "sums"),
    "mars": ("sums", "whole"),
    **dict.fromkeys(("sign", "sign-nesterov"), ("whole", "sums", "apply")),
    **dict.fromkeys(("momo", "momo-adam"), ("sums", "apply")),
}
"""What is launched of each rule: lion's sums are the spectral family's average."""

UNDIVIDED = ("adamw", "lion", "momo-adam")
"""What the spectral family launches, without division: compilations of their own."""


def steps() -> dict[str, Kernel]:
    """Return the elementwise kernel as each rule's phases are compiled."""
    found = {}
    for rule, phases in PHASES.items():
        for phase in phases:
            name = rule if phase == "whole" else f"{rule}-{phase}"
            found[name] = step(rule, phase)
            if rule in UNDIVIDED:
                found[f"{name}-undivided"] = step(rule, phase, divide=False)
    return found


KERNELS: dict[str, Kernel] = {
    **steps(),
    # A learning rate is read alike by all rules.
    "adamw-lr-in-memory": step("adamw", lr_in_memory=True),
    **{f"corrections-{rule}": corrections(rule) for rule in ("adam", "adamw", "nadam", "nadamw")},
    **{f"corrections-{rule}-wide": corrections(rule, wide=True) for rule in ("ademamix", "mars")},
    "corrections-adamw-wide": corrections("adamw", wide=True),
    "corrections-momo": corrections("momo"),
    "corrections-momo-first": corrections("momo", from_zero=False),
    "corrections-momo-adam": corrections("momo-adam"),
    "slow": Kernel(numbers.slow_kernel, SLOTS, SLOT_LAYOUT),
    "free": free(lr_in_memory=False),
    "free-lr-in-memory": free(lr_in_memory=True),
    "totals": Kernel(numbers.totals_kernel, SUMMED, SUM_LAYOUT),
    "clip": Kernel(numbers.clip_kernel, SUMMED, SUM_LAYOUT),
    "squares": Kernel(norm.squares_kernel, {**TABLES, "squares": "*fp32"}, CHUNKED),
    "factor": Kernel(
        norm.factor_kernel,
        {"squares": "*fp32", "norm": "*fp32", "factor": "*fp32", "count": "i32"},
        {"BLOCK": 4096},
        {"num_warps": 8},
    ),
}


def compiled(kernel: Kernel, capability: int) -> str:
    """Return its PTX."""
    names = kernel.fn.arg_names
    types = {name: kernel.types.get(name, "fp32") for name in names}
    types |= dict.fromkeys(kernel.constants, "constexpr")
    pointers = [i for i, name in enumerate(names) if types[name].startswith("*")]
    source = ASTSource(
        fn=kernel.fn,
        signature=types,
        constexprs=kernel.constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in pointers},
    )
    target = GPUTarget("cuda", capability, 32)
    ptx: str = triton.compile(source, target=target, options=kernel.options).asm["ptx"]
    return ptx


def assembled(ptx: Path, capability: int) -> str:
    """Return what the assembler says of its registers and spills."""
    architecture = re.findall(r"^\.target (\w+)", ptx.read_text(), re.MULTILINE)[0]
    told = subprocess.run(
        [get_ptxas(capability).path, "-v", "--gpu-name", architecture, ptx, "-o", "/dev/null"],
        check=True,
        capture_output=True,
        text=True,
    )
    return told.stderr


def main(directory: Path, capability: int) -> None:
    directory.mkdir()
    for name, kernel in KERNELS.items():
        ptx = directory / f"{name}.ptx"
        ptx.write_text(compiled(kernel, capability))
        (directory / f"{name}.txt").write_text(assembled(ptx, capability))


if __name__ == "__main__":
    for wanted in sys.argv[2:]:
        main(Path(sys.argv[1]) / wanted, int(wanted))
