"""Compile the symmetric product for a GPU that need not be there.

compile_symmetric.py CAPABILITY DIRECTORY; leaves NAME.ptx and what the assembler says of it,
NAME.txt, for each way the kernel is launched.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from trainer.kernels.gram import _MEASURED_ON, _SPLITS
from trainer.kernels.symmetric_triton import symmetric_kernel, tiling_of

capability, directory = int(sys.argv[1]), Path(sys.argv[2])
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
POINTERS = 3
# What changes the generated code: dtypes, which way x lies, whether blocks fit, and the tiling.
WAYS: dict[str, dict[str, Any]] = {
    "wide": {"x": torch.bfloat16, "out": torch.bfloat16, "x_column": 1, "HAS_PLUS": False},
    "tall": {"x": torch.bfloat16, "out": torch.bfloat16, "x_row": 1, "HAS_PLUS": False},
    "ragged": {"x": torch.bfloat16, "out": torch.bfloat16, "x_column": 1, "EVEN_M": False},
    "accumulated": {"x": torch.bfloat16, "out": torch.float32, "x_row": 1, "HAS_PLUS": True},
    "fp32": {"x": torch.float32, "out": torch.float32, "x_row": 1, "HAS_PLUS": True},
    **{
        f"batch of {batch}": {
            "x": torch.bfloat16,
            "out": torch.bfloat16,
            "x_row": 1,
            "batch": batch,
        }
        for batch in (1, 12)
    },
}
if capability == 10 * _MEASURED_ON[0] + _MEASURED_ON[1]:
    WAYS |= {
        f"gram by {split.parts} parts, {split.warps} warps, {split.stages} stages": {
            "x": torch.bfloat16,
            "out": torch.float32,
            "x_row": 1,
            "HAS_PLUS": False,
            "tiling": split.tiling,
        }
        for splits in _SPLITS.values()
        for split in splits.values()
    }


def compiled(way: dict[str, Any]) -> Any:
    tiling = way.get("tiling") or tiling_of(way["x"], way.get("batch", 6), 768)
    even = way.get("EVEN_M", True)
    constants = {
        "HAS_PLUS": way.get("HAS_PLUS", True),
        "EVEN_M": even,
        "EVEN_N": even,
        "BLOCK": tiling.block,
        "DEPTH": tiling.depth,
        "GROUP": tiling.group,
        "PRECISION": tiling.precision,
        **{key: 1 for key in ("x_row", "x_column") if key in way},
    }
    types = {
        "x": f"*{NAMES[way['x']]}",
        **dict.fromkeys(("plus", "out"), f"*{NAMES[way['out']]}"),
        **dict.fromkeys(("alpha", "beta", "diagonal"), "fp32"),
        **dict.fromkeys(constants, "constexpr"),
    }
    names = symmetric_kernel.arg_names
    aligned = [(i,) for i, name in enumerate(names) if i < POINTERS or name not in types]
    return triton.compile(
        ASTSource(
            fn=symmetric_kernel,
            signature={name: types.get(name, "i32") for name in names},
            constexprs=constants,
            attrs={key: [["tt.divisibility", 16]] for key in aligned},
        ),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": tiling.warps, "num_stages": tiling.stages},
    )


for name, way in WAYS.items():
    made = compiled(way)
    ptx = directory / f"{name}.ptx"
    ptx.write_text(made.asm["ptx"])
    architecture = re.findall(r"^\.target (\w+)", ptx.read_text(), re.MULTILINE)[0]
    told = subprocess.run(
        [get_ptxas(capability).path, "-v", "--gpu-name", architecture, ptx, "-o", "/dev/null"],
        check=True,
        capture_output=True,
        text=True,
    )
    shared = f"{made.metadata.shared} bytes shared memory\n"
    (directory / f"{name}.txt").write_text(told.stderr + shared)
