"""Batches made ready on a thread of their own while the device works on earlier ones."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Protocol

import torch

from trainer.config import TrainConfig
from trainer.data.batches import Batch, Tokens, TrainingOrder
from trainer.data.shards import TokenShards

AHEAD = 4
"""Micro-batches ready or in the making beside the one in use; each takes 8 bytes a token."""


def training_batches(
    tokens: Tokens,
    config: TrainConfig,
    steps: int,
    device: torch.device,
    *,
    rank: int = 0,
    world: int = 1,
) -> Batches:
    """Return what yields a rank's micro-batches of the step that follows so many done ones.

    They are prefetched where making them can take time: from files, and into pinned memory.
    """
    params = config.training
    pinned = device.type == "cuda"
    order = TrainingOrder(
        tokens, params.context_length, config.seed, rank=rank, world=world, pinned=pinned
    )
    sequences = params.tokens_processed // params.context_length

    def micro_batches(step: int) -> Iterator[Batch]:
        return order.micro_batches(step, sequences, params.batch_size)

    if pinned or isinstance(tokens, TokenShards):
        return Prefetched(micro_batches, steps, device)
    return Made(micro_batches)


class Batches(Protocol):
    """The micro-batches of any step."""

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """Yield those of the step that follows ``step`` done ones."""

    def close(self) -> None:
        """End what makes them."""


@dataclass(frozen=True)
class Made:
    """Micro-batches that are made when they are asked for."""

    micro_batches: Callable[[int], Iterator[Batch]]

    def close(self) -> None:
        """Do nothing."""


class Prefetched:
    """The micro-batches of one step after the other, a bounded number of them ahead of the reader.

    The thread begins with the first step asked for, and begins anew where steps are asked for out
    of turn. It ends with the last step, or with this object.
    """

    def __init__(
        self,
        micro_batches: Callable[[int], Iterator[Batch]],
        steps: int,
        device: torch.device | None = None,
    ) -> None:
        """Take what makes the micro-batches of a step, how many steps there are, and for whom."""
        self._make, self._steps, self._device = micro_batches, steps, device
        self._line: _Line | None = None
        self._thread: threading.Thread | None = None
        self._next = -1
        """The step whose batches come out of the line next; -1 within one."""

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """Yield the micro-batches of the step that follows ``step`` done ones.

        Raises:
            Exception: whatever making them raised.
        """
        line = self._line
        if line is None or step != self._next:
            line = self._begin(step)
        self._next = -1
        yield from line.step()
        self._next = step + 1

    def close(self) -> None:
        """End the thread, and wait until it has made the batch at hand."""
        if self._line is not None:
            self._line.close()
            self._line = None
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _begin(self, step: int) -> _Line:
        self.close()
        line = self._line = _Line()
        # The thread knows the line but not this object, whose end is that of the thread.
        weakref.finalize(self, line.close)
        work = (self._make, range(step, max(self._steps, step + 1)), line, self._device)
        self._thread = threading.Thread(target=_fill, args=work, name="prefetch", daemon=True)
        self._thread.start()
        return line


@dataclass
class _Line:
    """What the thread and its reader share."""

    ready: SimpleQueue[Batch | BaseException | None] = field(default_factory=SimpleQueue)
    """None ends a step."""
    room: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(AHEAD))
    closed: bool = False

    def close(self) -> None:
        self.closed = True
        self.room.release()

    def step(self) -> Iterator[Batch]:
        """Yield what is ready until a step ends."""
        while (item := self.ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            self.room.release()
            yield item


def _fill(
    make: Callable[[int], Iterator[Batch]],
    steps: range,
    line: _Line,
    device: torch.device | None,
) -> None:
    try:
        if device is not None and device.type == "cuda":
            # A thread begins with GPU 0, where pinned memory would cost every rank a context.
            torch.cuda.set_device(device)
        for step in steps:
            for batch in make(step):
                line.room.acquire()
                if line.closed:
                    return
                line.ready.put(batch)
            line.ready.put(None)
    except BaseException as error:  # noqa: BLE001 - the reader raises it
        line.ready.put(error)
