"""Compile the AdamW kernel for a GPU that need not be there: compile_adamw.py CAPABILITY DIRECTORY.

Leaves adamw.ptx and what the assembler says of it, ptxas.txt.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from trainer.kernels.adamw_triton import adamw_kernel
from trainer.kernels.chunks import BLOCK, COLUMNS

capability, directory = int(sys.argv[1]), Path(sys.argv[2])
types = {"table": "*i64", "clip": "*fp32", "COLUMNS": "constexpr", "BLOCK": "constexpr"}
aligned = [["tt.divisibility", 16]]
compiled = triton.compile(
    ASTSource(
        fn=adamw_kernel,
        signature={name: types.get(name, "fp32") for name in adamw_kernel.arg_names},
        constexprs={"COLUMNS": COLUMNS, "BLOCK": BLOCK},
        attrs={(0,): aligned, (1,): aligned},
    ),
    target=GPUTarget("cuda", capability, 32),
    options={"num_warps": 4, "enable_fp_fusion": True},
)
ptx = directory / "adamw.ptx"
ptx.write_text(compiled.asm["ptx"])
architecture = re.findall(r"^\.target (\w+)", ptx.read_text(), re.MULTILINE)[0]
told = subprocess.run(
    [get_ptxas(capability).path, "-v", "--gpu-name", architecture, ptx, "-o", "/dev/null"],
    check=True,
    capture_output=True,
    text=True,
)
(directory / "ptxas.txt").write_text(told.stderr)
