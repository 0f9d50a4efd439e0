"""Event files for TensorBoard, in ``tensorboard/`` of the run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.loggers.recorded import recorded

DIRECTORY = "tensorboard"
"""Of the run directory; ``tensorboard --logdir`` takes that of the sweep, or of all."""


class TensorBoard:
    """Scalars named ``stream/metric`` by step."""

    name = "TensorBoard"

    def __init__(self, directory: Path, step: int) -> None:
        self._directory, self._step = directory, step
        self._writer: Any = None
        self._had: set[str] = set()
        """Streams with a record of the step that the run goes on from: a validation made up for may
        be on record already when it comes."""

    def open(self) -> None:
        """Begin another file with all that counts so far; readers drop what earlier ones hold.

        A file lacks what an attempt had not written when it was killed, minutes of it.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._directory / DIRECTORY), purge_step=1)
        for stream, step, metrics in recorded(self._directory):
            if step <= self._step:
                self.log(stream, step, metrics)

    def log(self, stream: str, step: int, metrics: dict[str, float]) -> None:
        """Add a record."""
        if step == self._step:
            if stream in self._had:
                return
            self._had.add(stream)
        for name, value in metrics.items():
            self._writer.add_scalar(f"{stream}/{name}", value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()

    def abandon(self) -> None:
        """Leave it to the writer's own thread, which the process does not wait for."""
