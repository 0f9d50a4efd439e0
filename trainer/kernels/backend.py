"""The one place that decides between Triton and torch."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Iterable
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from rundir.errors import require
from trainer.kernels.layout import dense

log = logging.getLogger(__name__)

Backend = Literal["torch", "triton"]

LEAST_CAPABILITY = (7, 0)
"""The oldest GPUs that torch asks Triton for kernels of, in torch.compile too."""


def choose_backend(
    wanted: Literal["auto", "torch", "triton"], tensors: Iterable[Tensor]
) -> Backend:
    """Return ``wanted``, or for ``auto`` the faster one that can work on these tensors.

    Triton needs its package, dense fp32 tensors, and a CUDA device with a C compiler or its
    interpreter (``TRITON_INTERPRET=1``), which ``auto`` never takes: it is there for tests.

    Raises:
        UserError: ``triton`` is wanted and cannot work.
    """
    if wanted == "torch":
        return "torch"
    everything = list(tensors)
    obstacle = _obstacle(everything)
    if wanted == "auto":
        on_device = all(tensor.device.type == "cuda" for tensor in everything)
        return "triton" if obstacle is None and on_device else "torch"
    require(obstacle is None, "backend", wanted, f"auto or torch: {obstacle}")
    return "triton"


def _obstacle(tensors: list[Tensor]) -> str | None:
    """Say why Triton cannot work on these tensors; None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed here; it comes with the extra optsweep[triton]"
    if not tensors:
        return "there are no weights to step"
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        return f"the weights lie on several devices: {', '.join(sorted(map(str, devices)))}"
    interpreted = os.environ.get("TRITON_INTERPRET", "0") == "1"
    if not interpreted and any(device.type != "cuda" for device in devices):
        return f"the weights lie on {next(iter(devices))}, and Triton needs a CUDA device"
    if any(tensor.dtype != torch.float32 for tensor in tensors):
        return "the kernel works on fp32 weights only"
    if not all(map(dense, tensors)):
        return "the kernel works on weights without gaps in memory only"
    return None if interpreted else launch_fault()


@cache
def launch_fault() -> str | None:
    """Say why Triton cannot launch anything on this machine's GPU; None if it can.

    It comes with torch, but builds what launches its kernels by a C compiler with Python's headers.
    Compiles where a user has never launched one. Asked once a process, and said once, too.
    """
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed here; it comes with the extra optsweep[triton]"
    fault = _toolchain_fault()
    if fault is not None:
        log.info("backend: torch. %s", fault)
    return fault


def _toolchain_fault() -> str | None:
    # As Triton looks for one. Some versions build another launcher where a kernel takes other
    # arguments, so that what lies in its cache proves nothing.
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return (
            "Triton needs a C compiler, and there is no gcc, no clang, and no CC in the environment"
        )
    try:
        from triton.runtime import driver

        driver.active.get_current_device()
    except Exception as error:  # noqa: BLE001 - a compiler's, a linker's, a file system's
        said = (str(error).strip().splitlines() or [""])[0]
        return f"Triton cannot build what launches its kernels: {type(error).__name__}: {said}"
    return age_fault(torch.cuda.get_device_capability())


def age_fault(capability: tuple[int, int]) -> str | None:
    """Say that a GPU of this compute capability is too old for Triton; None if it is not."""
    if capability >= LEAST_CAPABILITY:
        return None
    least, found = (".".join(map(str, each)) for each in (LEAST_CAPABILITY, capability))
    return f"Triton needs compute capability {least} or newer, and this GPU has {found}"


def has_bf16(device: torch.device) -> bool:
    """Say whether a GPU has units for bf16; torch's own answer counts those that emulate it."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
