"""Fused optimizer kernels: each a Triton kernel beside a plain torch twin with the same numbers.

Triton is an optional extra; nothing here imports it before a kernel is launched.
"""

from trainer.kernels.adamw import adamw_step
from trainer.kernels.backend import Backend, choose_backend
from trainer.kernels.operands import AdamWScalars

__all__ = ["AdamWScalars", "Backend", "adamw_step", "choose_backend"]
