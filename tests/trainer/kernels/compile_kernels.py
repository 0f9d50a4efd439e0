"""Compile every kernel for a GPU that need not be there: compile_kernels.py CAPABILITY DIRECTORY.

Leaves NAME.ptx of each and what the assembler says of it, NAME.txt.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from trainer.kernels import elementwise_triton as elementwise
from trainer.kernels import norm_triton as norm
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


def step(rule: str, phase: str = "whole", *, lr_in_memory: bool = False) -> Kernel:
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
            "DIVIDE": True,
            "LR_IN_MEMORY": lr_in_memory,
        },
        {"num_warps": 4, "enable_fp_fusion": True},
    )


def corrections(*, nadam: bool) -> Kernel:
    return Kernel(
        elementwise.corrections_kernel,
        {**TABLES, "corrections": "*fp32", "first_slot": "i32", "count": "i32"},
        {"NADAM": nadam, "BLOCK": 256, "SLOT_COLUMNS": SLOT_COLUMNS},
    )


KERNELS: dict[str, Kernel] = {
    **{rule: step(rule) for rule in ("adam", "adamw", "nadam", "nadamw", "lion", "sign")},
    "sign-nesterov": step("sign-nesterov"),
    "adamw-lr-in-memory": step("adamw", lr_in_memory=True),
    "sign-averages": step("sign", "averages"),
    "sign-nesterov-averages": step("sign-nesterov", "averages"),
    "sign-apply": step("sign", "apply"),
    "sign-nesterov-apply": step("sign-nesterov", "apply"),
    "momo-adam-averages": step("momo-adam", "averages"),
    "momo-adam-apply": step("momo-adam", "apply"),
    "corrections": corrections(nadam=False),
    "corrections-nadam": corrections(nadam=True),
    "totals": Kernel(
        elementwise.totals_kernel,
        {**TABLES, "sums": "*fp32", "totals": "*fp32", "first_slot": "i32"},
        {"BLOCK": 256, "SLOT_COLUMNS": SLOT_COLUMNS, "SUMS": SUMS},
    ),
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


def main(capability: int, directory: Path) -> Iterator[str]:
    for name, kernel in KERNELS.items():
        ptx = directory / f"{name}.ptx"
        ptx.write_text(compiled(kernel, capability))
        (directory / f"{name}.txt").write_text(assembled(ptx, capability))
        yield name


if __name__ == "__main__":
    list(main(int(sys.argv[1]), Path(sys.argv[2])))
