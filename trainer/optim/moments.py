# ruff: noqa: N803, N806 - tensor names end in their shape
"""Second moments of linear layers' inputs, gathered while the model trains.

Layers that have seen the same tensors since the last step, like the query, key and value of an
attention or the two halves of a SwiGLU, share one sum, found anew in every forward pass: a sum is
never changed, each input leads from one to the next, and whoever comes to a sum with an input that
another has left it with follows. So a layer that goes its own way takes along what was shared.

Shape suffixes: R rows, N inputs.
"""

from __future__ import annotations

import copy
import sys
import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.compute.autocast import autocast_dtype
from trainer.compute.recompute import is_recomputing
from trainer.optim.gram import gram

_Seen = tuple[int, torch.Size, tuple[int, ...], torch.dtype, int]


class Sum:
    """X^T X over some inputs, and the number of their rows."""

    def __init__(self, total_NN: Tensor | None, rows: int) -> None:
        self.total_NN = total_NN
        """Lower triangle, in fp32 or fp64; None before the first input."""
        self.rows = rows
        self.captured = total_NN is not None and _captures(total_NN)
        """Whether only the replays of a CUDA graph know the numbers."""
        self._holders = 0
        self._following: dict[_Seen, tuple[weakref.ref[Tensor], Sum]] = {}

    def after(self, x: Tensor, count: int) -> Sum:
        """Return the sum that the first ``count`` rows of ``x`` (..., N) lead to."""
        key = (x.data_ptr(), x.shape, x.stride(), x.dtype, x._version)
        owner, found = self._following.get(key, (lambda: None, self))
        # An address alone may be another tensor's by now: its owner has to be alive and unchanged.
        alive = owner()
        if alive is not None and alive._version == x._version and found._holders:
            return found
        x_RN = x.detach().reshape(-1, x.shape[-1])[:count]
        # What the layer multiplies: a norm before it gives fp32, which takes many times as long.
        product_NN = gram(x_RN.to(autocast_dtype(x_RN) or x_RN.dtype))
        if self.total_NN is not None:
            product_NN.add_(self.total_NN)
        found = Sum(product_NN, self.rows + count)
        self._following[key] = weakref.ref(x), found
        return found

    def take(self, holders: int = 1) -> Sum:
        """Count layers that have come here."""
        self._holders += holders
        return self

    def leave(self) -> None:
        """Count a layer that has gone; the last one turns off the light."""
        self._holders -= 1
        if not self._holders:
            self.total_NN = None
            self._following.clear()


class InputMoments:
    """The sums of a model's layers since the last :meth:`reset`.

    Watches forward passes in training mode with gradients on. Memory: N^2 numbers for each distinct
    input, once more for one of them while its layers are underway from one sum to the next.
    """

    def __init__(self, part: float | None = None, *, whole: bool = True) -> None:
        """Gather everything, or only a part.

        Args:
            part: in (0, 1]; None is 1.
            whole: take the part as whole micro-batches, the first of every round(1 / part) that
                a layer has seen since the last reset, otherwise as the first rows of each, counted
                over all ranks.
        """
        part = 1.0 if part is None else part
        self._every = max(1, round(1 / part)) if whole else 1
        self._part = 1.0 if whole else part
        self._sums: dict[Tensor, Sum] = {}
        self._batches: dict[Tensor, int] = {}

    def watch(self, layer: nn.Linear) -> None:
        """Gather this layer's inputs from now on; layers of one weight have one sum."""
        self._sums[layer.weight] = Sum(None, 0)
        self.reset()
        # On a CPU nothing is compiled but by who has loaded the compiler already, which takes 2 s.
        hidden = layer.weight.device.type != "cpu" or "torch._dynamo" in sys.modules
        layer.register_forward_pre_hook(_Hook(self, hidden=hidden))

    def of(self, weight: Tensor) -> Sum:
        """Return the sum of this rank's inputs; the same object for layers that share it.

        Raises:
            RuntimeError: no input was seen since the last reset; or the inputs were captured in a
                CUDA graph and whoever asks is not, or the other way round.
        """
        found = self._sums.get(weight)
        if found is None or found.total_NN is None:
            raise RuntimeError(
                "a linear layer has a gradient, but saw no input in training mode since the last "
                "step: call model.train() and run the forward pass through the layer itself"
            )
        if found.captured != _captures(found.total_NN):
            raise RuntimeError(
                "a step and the forward passes whose inputs it needs must be captured in one CUDA "
                "graph, or neither of them"
            )
        return found

    def reset(self) -> None:
        """Forget the inputs."""
        nothing = Sum(None, 0).take(len(self._sums))
        self._sums = dict.fromkeys(self._sums, nothing)
        self._batches = dict.fromkeys(self._sums, 0)

    def _before_forward(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not layer.training or not torch.is_grad_enabled() or not inputs or is_recomputing():
            return
        weight: Tensor = layer.weight  # type: ignore[assignment]
        batch = self._batches.get(weight)
        if batch is None:  # a copy of the layer, with the hook of the one it was copied from
            return
        self._batches[weight] = batch + 1
        if batch % self._every == 0:
            before, x = self._sums[weight], inputs[0]
            here = x.numel() // x.shape[-1]
            self._sums[weight] = before.after(x, self._wanted(here)).take()
            before.leave()

    def _wanted(self, here: int) -> int:
        """Return how many of this rank's rows are among the first ``part`` of all ranks' rows."""
        rank, world = place()
        wanted = max(1, int(self._part * here * world)) - rank * here
        return min(here, max(0, wanted))


class _Hook:
    """Looks at a layer's inputs; copied with the model and the sums.

    Where it is hidden from torch.compile: traced, its counters would recompile the model.
    """

    def __init__(self, moments: InputMoments, *, hidden: bool) -> None:
        self._moments, self._hidden = moments, hidden
        self._look: Any = moments._before_forward
        if hidden:
            self._look = torch.compiler.disable(self._look)  # type: ignore[no-untyped-call]

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._look(layer, inputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        """Copy what is written to: of a function no copy is made."""
        return type(self)(copy.deepcopy(self._moments, memo), hidden=self._hidden)


def stacked_means(sums: list[Sum]) -> list[Tensor]:
    """Return X^T X over the number of rows, over all ranks of a process group.

    All ranks pass sums of the same sizes in the same order. They travel in one message.

    Returns:
        For each run of sums of one size their means, (K, N, N), all in the widest sum's type and
        free to be written to; the upper triangles are undefined.
    """
    totals = [each.total_NN for each in sums if each.total_NN is not None]
    rows = [each.rows for each in sums]
    counts = totals[0].new_full((len(sums),), rows[0])
    for index, count in enumerate(rows):
        if count != rows[0]:  # a tensor made of a list would wait for the device
            counts[index].fill_(count)
    flat = torch.cat([*(total_NN.flatten() for total_NN in totals), counts])
    if place()[1] > 1:
        dist.all_reduce(flat)
    stacks, begin, first = [], 0, 0
    while first < len(sums):
        size = totals[first].shape[-1]
        last = first
        while last < len(sums) and totals[last].shape[-1] == size:
            last += 1
        end = begin + (last - first) * size**2
        rows_K11 = flat[-len(sums) :][first:last, None, None]
        stacks.append(flat[begin:end].view(-1, size, size).div_(rows_K11))
        begin, first = end, last
    return stacks


def _captures(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def place() -> tuple[int, int]:
    """Return this process's rank and the number of ranks."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
