"""torch.compile, with a cache that all runs share.

What one run has compiled, the others of its sweep read: by default from ``compiled`` below
``~/.cache/optsweep`` (``OPTSWEEP_CACHE`` where that is set), which nodes with the same home share,
or from wherever ``TORCHINDUCTOR_CACHE_DIR`` points.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trainer.data.corpus import CACHE_VARIABLE
from trainer.kernels.backend import launch_fault
from trainer.model import GPT

log = logging.getLogger(__name__)

INDUCTOR_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Where torch.compile keeps what it compiled; torch's own default is a directory of /tmp."""


def choose_cache() -> None:
    """Say where to keep what is compiled, unless somebody has.

    Comes before whatever imports torch._dynamo, as DistributedDataParallel does: that says so too,
    and means a directory of /tmp.
    """
    if INDUCTOR_VARIABLE not in os.environ:
        cache = Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/optsweep").expanduser()
        os.environ[INDUCTOR_VARIABLE] = str(cache / "compiled")


def can_compile(device: torch.device) -> bool:
    """Say whether this machine can; where it can't, the log says so."""
    if device.type == "cpu" and not has_compiler():
        log.info("training_params.compile: not used, there is no C++ compiler here")
        return False
    if device.type == "cuda" and (fault := launch_fault()):
        log.info("training_params.compile: not used. %s", fault)
        return False
    return True


def compiled(model: torch.nn.Module, device: torch.device) -> Callable[..., Any]:
    """Return the model compiled, or as it is where this machine can't."""
    if not can_compile(device):
        return model
    choose_cache()
    inner = getattr(model, "module", model)  # what DDP wraps
    if isinstance(inner, GPT):
        inner.compile_parts()
        return model
    forward: Callable[..., Any] = torch.compile(model)
    return forward


def has_compiler() -> bool:
    """Say whether there is what torch calls: ``CXX`` of the environment, or g++."""
    words = os.environ.get("CXX", "").split() or ["g++"]
    return shutil.which(words[0]) is not None
