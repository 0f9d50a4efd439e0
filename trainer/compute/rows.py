"""The gradient of a micro-batch on a CPU, each thread with rows of its own.

All threads on every operator meet a few hundred times a step, and wait for whichever of them was
held up; what a small model's operators do between two meetings takes less than a millisecond.
Threads with rows of their own meet once. Two threads, gpt of 3.2M parameters, 8 x 256 tokens:
docs/log.md has both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from trainer.data.batches import Batch
from trainer.kernels.threads import run_pieces
from trainer.model import GPT

MOST_NUMBERS = 2**26
"""Of all threads' gradients together, 256 MB: larger models have operators that are worth all
threads."""

_FLOPS_PER_US = 5e4
"""What a thread does, about."""

LossOf = Callable[[Batch], torch.Tensor]
"""Returns the mean loss over the tokens of some rows."""


class RowThreads:
    """Adds the gradients of micro-batches to those of a model's weights."""

    def __init__(self, model: GPT) -> None:
        """Take a model that nothing else looks into; see :func:`row_threads`."""
        self._weights = list(model.parameters())
        self._numbers = sum(weight.numel() for weight in self._weights)
        self._flops = model.flops_per_token(model.context)

    def fits(self, rows: int) -> bool:
        """Whether each thread gets as many of the rows, and there is room for its gradients."""
        threads = torch.get_num_threads()
        whole = threads > 1 and rows % threads == 0
        return whole and threads * self._numbers <= MOST_NUMBERS

    def backward(self, loss_of: LossOf, batch: Batch, parts: int = 1) -> torch.Tensor:
        """Add the gradient of the mean loss over ``parts``; return that quotient.

        The sums have the same order each time, whichever thread ends first.

        Args:
            loss_of: called from several threads at once.
            batch: inputs and targets (B, T), for whose B :meth:`fits` holds.
            parts: micro-batches of the step.
        """
        threads = torch.get_num_threads()
        shares = list(zip(*(part.chunk(threads) for part in batch), strict=True))
        done: list[tuple[torch.Tensor, Sequence[torch.Tensor]] | None] = [None] * threads

        @torch.enable_grad()
        def share(index: int) -> None:
            loss = loss_of(shares[index]) / (parts * threads)
            done[index] = loss.detach(), torch.autograd.grad(loss, self._weights)

        cost = self._flops * shares[0][0].numel() / _FLOPS_PER_US
        run_pieces([partial(share, index) for index in range(threads)], [cost] * threads)
        losses, gradients = zip(*filter(None, done), strict=True)
        self._add(gradients)
        return torch.stack(losses).sum()

    @torch.no_grad()
    def _add(self, gradients: Sequence[Sequence[torch.Tensor]]) -> None:
        first, *others = gradients
        if any(weight.grad is None for weight in self._weights):
            # Laid out as the weights are, which what autograd returns need not be.
            for weight, gradient in zip(self._weights, first, strict=True):
                same = gradient.stride() == weight.stride()
                weight.grad = gradient if same else torch.empty_like(weight).copy_(gradient)
        else:
            others = [first, *others]
        sums = [weight.grad for weight in self._weights if weight.grad is not None]
        for each in others:
            torch._foreach_add_(sums, list(each))


def row_threads(model: nn.Module, device: torch.device) -> RowThreads | None:
    """Return None where rows of a batch may not go through the model at once and by themselves.

    They may not where something looks at the layers' inputs, as DAP does, and not where backward
    calls forward again.
    """
    if device.type != "cpu" or not isinstance(model, GPT) or model.activation_checkpointing:
        return None
    # torch names them only so.
    watched = any(
        module._forward_hooks or module._forward_pre_hooks  # noqa: SLF001
        for module in model.modules()
    )
    return None if watched else RowThreads(model)
