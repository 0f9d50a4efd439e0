# ruff: noqa: N803, N806 - tensor names end in their shape
"""The second moment of a linear layer's inputs, gathered while the model trains."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class InputMoment:
    """Sum of X^T X and number of rows since the last :meth:`reset`.

    Watches forward passes in training mode with gradients on. Each costs 2 in^2 FLOPs per row and
    in^2 numbers of memory per layer. Sums are kept in fp32, or fp64 for fp64 inputs.
    """

    def __init__(self, part: float | None = None, *, whole: bool = True) -> None:
        """Gather everything, or only a part.

        Args:
            part: in (0, 1]; None is 1.
            whole: take the part as whole micro-batches, the first of every round(1 / part) since
                the last reset, otherwise as the first rows of each, counted over all ranks.
        """
        part = 1.0 if part is None else part
        self._every = max(1, round(1 / part)) if whole else 1
        self._part = 1.0 if whole else part
        self._sum_NN: Tensor | None = None
        self._rows = 0
        self._batches = 0

    def watch(self, layer: nn.Linear) -> None:
        """Gather this layer's inputs from now on."""
        hook = self._before_forward
        if layer.weight.device.type != "cpu":
            # Traced by torch.compile, the hook's counters would recompile the model at each step.
            # Not on a CPU, where nothing is compiled and the import behind this takes 2 s.
            hook = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
        layer.register_forward_pre_hook(hook)

    def mean(self) -> Tensor:
        """Return X^T X over the number of rows, (N, N), over all ranks of a process group.

        Raises:
            RuntimeError: no input was seen since the last reset.
        """
        if self._sum_NN is None or not self._batches:
            raise RuntimeError(
                "a linear layer has a gradient, but saw no input in training mode since the last "
                "step: call model.train() and run the forward pass through the layer itself"
            )
        if _place()[1] == 1:
            return self._sum_NN / self._rows
        total_NN = self._sum_NN.clone()
        rows = torch.tensor(float(self._rows), dtype=total_NN.dtype, device=total_NN.device)
        dist.all_reduce(total_NN)
        dist.all_reduce(rows)
        return total_NN / rows

    def reset(self) -> None:
        """Forget the inputs; the memory is kept."""
        if self._sum_NN is not None:
            self._sum_NN.zero_()
        self._rows = self._batches = 0

    def _before_forward(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not layer.training or not torch.is_grad_enabled() or not inputs:
            return
        self._batches += 1
        if (self._batches - 1) % self._every == 0:
            x = inputs[0].detach()
            self._add(x.reshape(-1, x.shape[-1]))

    @torch.no_grad()
    def _add(self, x_RN: Tensor) -> None:
        rank, world = _place()
        here = x_RN.shape[0]
        wanted = max(1, int(self._part * here * world)) - rank * here
        count = min(here, max(0, wanted))
        wide = torch.promote_types(x_RN.dtype, torch.float32)
        x_RN = x_RN[:count].to(wide)
        if self._sum_NN is None:
            size = x_RN.shape[1]
            self._sum_NN = torch.zeros(size, size, dtype=wide, device=x_RN.device)
        with torch.autocast(x_RN.device.type, enabled=False):
            self._sum_NN.addmm_(x_RN.mT, x_RN)
        self._rows += count


def _place() -> tuple[int, int]:
    """Return this process's rank and the number of ranks."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
