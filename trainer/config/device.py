"""Whether this machine has the device that a run asks for; loads no torch, which takes a second."""

from __future__ import annotations

import os
from pathlib import Path

from rundir.errors import IllegalValue

_NODES = ("nvidia*", "nvhost*", "nvgpu*", "kfd", "dxg")
"""What lies in /dev where there is a GPU: NVIDIA's, of its boards, AMD's, and in WSL."""


def may_have_cuda() -> bool:
    """Say whether torch may find a CUDA device here; it may still find none where this is true."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    # As CUDA reads it: the list ends at the first id that is none.
    is_hidden = chosen is not None and (not chosen.strip() or chosen.lstrip().startswith("-"))
    return not is_hidden and any(any(Path("/dev").glob(node)) for node in _NODES)


def no_cuda() -> IllegalValue:
    """Return the error for ``device: cuda`` where there is none."""
    return IllegalValue("device", "cuda", "auto or cpu: this machine has no CUDA device")
