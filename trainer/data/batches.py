"""Which tokens each step trains on: a pure function of (seed, step, rank, world).

Shapes: B sequences of a micro-batch, T context length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.data.shards import TokenShards
from trainer.data.shuffle import KeyedPermutation

Tokens = NDArray[Any] | TokenShards
"""A split in memory, (N,), or mapped from files."""

BLOCK = 1024
"""Positions whose windows are looked up at once: one by one that costs as much as reading them."""

Batch = tuple[torch.Tensor, torch.Tensor]
"""Inputs and targets, int64 (B, T); the targets are the inputs one token later."""


class TrainingOrder:
    """Cuts the training split into windows and shuffles them anew for every pass.

    Each pass starts its windows at another offset. All numbers come from (seed, pass), so a run
    resumes with nothing but its step.
    """

    def __init__(
        self,
        tokens: Tokens,
        context: int,
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
        pinned: bool = False,
    ) -> None:
        """Take ``tokens`` (N,) with N > context.

        Memory beyond them is 8 bytes a window for tokens in memory, and none for those in files.

        Args:
            tokens: the training split.
            context: T.
            seed: of the run.
            rank: whose rows, of every ``world``.
            world: number of ranks.
            pinned: whether batches lie in page-locked memory, which a GPU copies from by itself.
        """
        self._tokens, self._context, self._seed = tokens, context, seed
        self._rank, self._world, self._pinned = rank, world, pinned
        self._windows = max(1, (len(tokens) - context) // context)
        self._starts_of_pass = lru_cache(maxsize=2)(self._draw_starts)
        self._block = lru_cache(maxsize=2)(self._draw_block)

    def micro_batches(self, step: int, sequences: int, batch: int) -> Iterator[Batch]:
        """Yield this rank's rows of the micro-batches of one step, in the order of the ranks.

        Args:
            step: optimizer steps already done.
            sequences: of a whole step, over all ranks and micro-batches.
            batch: sequences of a micro-batch over all ranks; divides ``sequences``, and the
                number of ranks divides it.
        """
        rows = batch // self._world
        first = step * sequences + self._rank * rows
        for at in range(first, first + sequences, batch):
            yield cut(self._tokens, self._starts(at, rows), self._context, pinned=self._pinned)

    def _starts(self, position: int, count: int) -> NDArray[np.int64]:
        """Return where the windows at ``count`` positions begin; they may cross into a new pass."""
        first, last = position // BLOCK, (position + count - 1) // BLOCK
        blocks = [self._block(number) for number in range(first, last + 1)]
        starts = blocks[0] if first == last else np.concatenate(blocks)
        return starts[position - first * BLOCK :][:count]

    def _draw_block(self, number: int) -> NDArray[np.int64]:
        """Return where the windows at the positions of a block begin."""
        positions = np.arange(number * BLOCK, (number + 1) * BLOCK)
        epochs, indices = np.divmod(positions, self._windows)
        starts = np.empty(BLOCK, dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            starts[here] = self._starts_of_pass(epoch)(indices[here])
        return starts

    def _draw_starts(self, epoch: int) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, epoch])))
        slack = len(self._tokens) - 1 - self._windows * self._context
        offset = random.integers(slack + 1)
        if isinstance(self._tokens, TokenShards):
            shuffled = KeyedPermutation(self._windows, random)
            return lambda indices: shuffled(indices) * self._context + offset
        starts = random.permutation(self._windows) * self._context + offset
        return lambda indices: starts[indices]


def validation_batches(
    tokens: Tokens, context: int, batch: int, wanted: int, *, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Yield this rank's batches of windows spread evenly over the validation split.

    Together the ranks read the same windows each time, however many ranks there are.

    Args:
        tokens: the split, (N,) with N > context.
        context: T.
        batch: B; the last batch may hold fewer.
        wanted: tokens to cover, rounded down to whole windows; all windows when there are fewer.
        rank: whose batches, of every ``world``.
        world: number of ranks.
    """
    windows = (len(tokens) - 1) // context
    count = _validation_windows(tokens, context, wanted)
    starts = np.arange(count) * windows // count * context
    for at in range(rank * batch, count, world * batch):
        yield cut(tokens, starts[at : at + batch], context)


def most_validation_batches(
    tokens: Tokens, context: int, batch: int, wanted: int, *, world: int = 1
) -> int:
    """Return how many batches :func:`validation_batches` yields to rank 0: no other has more."""
    return -(-_validation_windows(tokens, context, wanted) // (world * batch))


def _validation_windows(tokens: Tokens, context: int, wanted: int) -> int:
    """Return how many windows a validation reads."""
    return max(1, min((len(tokens) - 1) // context, wanted // context))


def cut(tokens: Tokens, starts: NDArray[np.int64], context: int, *, pinned: bool = False) -> Batch:
    """Return the windows that begin at ``starts`` (B,), as inputs and targets.

    Each is copied straight from where the tokens lie. Pinned ones are two tensors: of views into
    one, which are not contiguous, a copy to the device would make another one first and wait.
    """
    if pinned:
        inputs, targets = torch.empty(2, len(starts), context, dtype=torch.int64, pin_memory=True)
        _fill(tokens, starts, inputs)
        _fill(tokens, starts + 1, targets)
        return inputs, targets
    windows = torch.empty(len(starts), context + 1, dtype=torch.int64)
    _fill(tokens, starts, windows)
    return windows[:, :-1], windows[:, 1:]


def _fill(tokens: Tokens, starts: NDArray[np.int64], out: torch.Tensor) -> None:
    """Copy what follows each start into its row of ``out`` (B, L)."""
    if isinstance(tokens, TokenShards):
        tokens.read(starts, out.numpy())
    else:
        out.numpy()[:] = tokens[starts[:, None] + np.arange(out.shape[1])]
