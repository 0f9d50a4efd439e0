"""What a run computes in: autocast where the hardware has it, and the scaled loss that fp16 needs.

fp16 ends at 65504 and loses what is below 6e-8: the loss is multiplied by a scale that keeps the
gradients between the two. It doubles every 2000 good steps; a step whose gradients overflow is left
out and halves it.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from trainer.config import TrainingParams
from trainer.kernels.backend import has_bf16

log = logging.getLogger(__name__)

LEAST_SCALE = 1.0
"""Gradients that overflow below this scale are no rounding's fault, and count as not finite."""


class Precision:
    """The types of one run's forward and backward passes."""

    def __init__(self, params: TrainingParams, device: torch.device) -> None:
        """Choose them, and say so in the log where they are not those asked for."""
        if device.type == "cuda":
            torch.set_float32_matmul_precision(params.tensorcore_precision)
        self._device, self._dtype = device, _dtype(params, device)
        self.scaler: torch.amp.GradScaler | None = None
        if self._dtype is torch.float16:
            self.scaler = torch.amp.GradScaler(device.type)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=self._dtype)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss, scaled where fp16 wants it."""
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def overflowed(self, optimizer: torch.optim.Optimizer) -> bool:
        """Take the scale out of the gradients, and say whether the step is to be left out for it.

        Waits for the device in fp16, and does nothing otherwise.
        """
        if self.scaler is None:
            return False
        before = self.scaler.get_scale()
        self.scaler.unscale_(optimizer)
        self.scaler.update()
        return self.scaler.get_scale() < before and before > LEAST_SCALE

    def figures(self) -> dict[str, float]:
        """Return what is recorded beside the loss: loss_scale, in fp16."""
        return {} if self.scaler is None else {"loss_scale": self.scaler.get_scale()}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs; numbers only."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the scale of a run in fp16; that of another type has none, and is left."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)


def _dtype(params: TrainingParams, device: torch.device) -> torch.dtype | None:
    """Return what autocast computes in; None is no autocast."""
    if not params.autocast or params.mixed_precision == "float32":
        return None
    half = params.mixed_precision == "float16"
    # Without native bf16 a product is hundreds of times slower than in float32.
    if device.type != "cuda" or not (half or has_bf16(device)):
        log.info("training_params.autocast: not used on %s, float32 it is", device.type)
        return None
    return torch.float16 if half else torch.bfloat16
