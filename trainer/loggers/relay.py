"""Passes records on without ever making a step wait or fail."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeAlias

from rundir import Run
from trainer.config import TrainConfig
from trainer.loggers.identity import Identity

log = logging.getLogger(__name__)

CLOSING_S = 30.0
"""How long the end of a run waits, in all, for what was not passed on yet."""

BACKLOG = 100_000
"""Records that may wait; more would fill the memory of a run whose logger hangs."""

Record: TypeAlias = tuple[str, int, dict[str, float]]
"""Stream, step and metrics."""


class Logger(Protocol):
    """What takes a run's records; any error that it raises is the last of it."""

    name: str
    """For the warning."""

    def open(self) -> None:
        """Get ready; may take long."""

    def log(self, stream: str, step: int, metrics: dict[str, float]) -> None:
        """Take a record."""

    def close(self) -> None:
        """Write what is left; may take long."""

    def abandon(self) -> None:
        """Leave what is not written, at once; another thread may be in one of the others."""


class _Courier:
    """A thread that hands records to one logger, from opening to closing it."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._waiting: queue.Queue[Record | None] = queue.Queue(BACKLOG)
        self._is_over = False
        # A daemon: a process must not wait for a server that does not answer.
        self._thread = threading.Thread(target=self._work, name=logger.name, daemon=True)
        self._thread.start()

    def put(self, record: Record | None) -> None:
        if self._is_over:
            return
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self._give_up("too many records wait")

    def wait(self, seconds: float) -> None:
        """Wait for what was put last, and leave the rest to itself after that time."""
        self._thread.join(seconds)
        if self._thread.is_alive() and not self._is_over:
            self._give_up(f"not done {CLOSING_S:.0f} s after the end")
            self._logger.abandon()

    def _work(self) -> None:
        try:
            self._logger.open()
            while (record := self._waiting.get()) is not None and not self._is_over:
                self._logger.log(*record)
            self._logger.close()
        # SystemExit: what a package of others' does at its worst.
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a logger's fault is not the run's
            said = " ".join(str(error).split()) or type(error).__name__
            if not self._is_over:
                self._give_up(said)

    def _give_up(self, why: str) -> None:
        self._is_over = True
        text = "%s gets no more records (%s); the run goes on, metrics.jsonl has them all"
        log.warning(text, self._logger.name, why[:500])


class Relay:
    """Takes the records of one run for all its loggers; of most runs, for none."""

    def __init__(self, loggers: list[Logger]) -> None:
        self._couriers = [_Courier(logger) for logger in loggers]

    def log(self, stream: str, step: int, **metrics: float) -> None:
        """Pass a record on; costs microseconds."""
        for courier in self._couriers:
            courier.put((stream, step, metrics))

    def close(self) -> None:
        """End all loggers, within CLOSING_S."""
        until = time.monotonic() + CLOSING_S
        for courier in self._couriers:
            courier.put(None)
        for courier in self._couriers:
            courier.wait(max(0.0, until - time.monotonic()))


@contextmanager
def relaying(config: TrainConfig, run: Run, step: int) -> Iterator[Relay]:
    """Open the loggers that a configuration asks for, on rank 0; close them whatever happens.

    Args:
        config: whose ``logging`` says which.
        run: whose records they are.
        step: the one that the run goes on from; what follows replaces what was logged of it before.
    """
    loggers = _loggers(config, run, step) if run.rank == 0 else []
    opened = Relay(loggers)
    try:
        yield opened
    finally:
        opened.close()


def _loggers(config: TrainConfig, run: Run, step: int) -> list[Logger]:
    chosen: list[Callable[[], Logger]] = []
    wandb, tensorboard = config.logging.wandb, config.logging.tensorboard
    if wandb is not None:
        from trainer.loggers.weights_and_biases import WeightsAndBiases

        chosen.append(lambda: WeightsAndBiases(wandb, Identity.of(run, config), run.path))
    if tensorboard is not None:
        from trainer.loggers.tensor_board import TensorBoard

        chosen.append(lambda: TensorBoard(run.path, step))
    return [build() for build in chosen]
