"""Compile the inverse of Cholesky factors for a GPU that need not be there.

compile_cholesky.py CAPABILITY; prints the PTX and what the assembler says of it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from trainer.kernels.cholesky_triton import _WARPS, LARGEST, inverse_factor_kernel

capability = int(sys.argv[1])
CONSTANTS = {"BLOCK": LARGEST, "c_column": 1, "out_column": 1}
POINTERS = ("c", "out")
names = inverse_factor_kernel.arg_names
made = triton.compile(
    ASTSource(
        fn=inverse_factor_kernel,
        signature={
            name: "constexpr" if name in CONSTANTS else "*fp32" if name in POINTERS else "i32"
            for name in names
        },
        constexprs=CONSTANTS,
        attrs={
            (i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name not in CONSTANTS
        },
    ),
    target=GPUTarget("cuda", capability, 32),
    options={"num_warps": _WARPS},
)
text: str = made.asm["ptx"]
architecture = re.findall(r"^\.target (\w+)", text, re.MULTILINE)[0]
with tempfile.TemporaryDirectory() as directory:
    ptx = Path(directory) / "kernel.ptx"
    ptx.write_text(text)
    told = subprocess.run(
        [get_ptxas(capability).path, "-v", "--gpu-name", architecture, ptx, "-o", "/dev/null"],
        check=True,
        capture_output=True,
        text=True,
    )
sys.stdout.write(text + told.stderr)
