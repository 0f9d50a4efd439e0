"""Which tokens each step trains on: a pure function of (seed, step, rank, world).

Shapes: B sequences of a micro-batch, T context length.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Batch = tuple[torch.Tensor, torch.Tensor]
"""Inputs and targets, int64 (B, T); the targets are the inputs one token later."""


class TrainingOrder:
    """Cuts the training split into windows and shuffles them anew for every pass.

    Each pass starts its windows at another offset. All numbers come from (seed, pass), so a run
    resumes with nothing but its step.
    """

    def __init__(
        self, tokens: NDArray[Any], context: int, seed: int, *, rank: int = 0, world: int = 1
    ) -> None:
        """Take ``tokens`` (N,) with N > context; memory beyond them is 8 bytes per window."""
        self._tokens, self._context, self._seed = tokens, context, seed
        self._rank, self._world = rank, world
        self._windows = max(1, (len(tokens) - context) // context)
        self._starts_of_pass = lru_cache(maxsize=2)(self._draw_starts)

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
            starts = np.array([self._start(position) for position in range(at, at + rows)])
            yield cut(self._tokens, starts, self._context)

    def _start(self, position: int) -> int:
        epoch, index = divmod(position, self._windows)
        return int(self._starts_of_pass(epoch)[index])

    def _draw_starts(self, epoch: int) -> NDArray[np.int64]:
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, epoch])))
        slack = len(self._tokens) - 1 - self._windows * self._context
        offset = random.integers(slack + 1)
        return random.permutation(self._windows) * self._context + offset


def validation_batches(
    tokens: NDArray[Any], context: int, batch: int, wanted: int, *, rank: int = 0, world: int = 1
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
    count = max(1, min(windows, wanted // context))
    starts = np.arange(count) * windows // count * context
    for at in range(rank * batch, count, world * batch):
        yield cut(tokens, starts[at : at + batch], context)


def cut(tokens: NDArray[Any], starts: NDArray[np.int64], context: int) -> Batch:
    """Return the windows that begin at ``starts`` (B,), as inputs and targets."""
    rows = tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64)
    windows = torch.from_numpy(rows)
    return windows[:, :-1], windows[:, 1:]
