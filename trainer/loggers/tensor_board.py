"""Event files for TensorBoard, in ``tensorboard/`` of the run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DIRECTORY = "tensorboard"
"""Of the run directory; ``tensorboard --logdir`` takes that of the sweep, or of all."""


class TensorBoard:
    """Scalars named ``stream/metric`` by step."""

    name = "TensorBoard"

    def __init__(self, directory: Path, step: int) -> None:
        self._directory, self._step = directory / DIRECTORY, step
        self._writer: Any = None

    def open(self) -> None:
        """Begin another file; readers drop what earlier ones hold beyond the step resumed from."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._directory), purge_step=self._step + 1)

    def log(self, stream: str, step: int, metrics: dict[str, float]) -> None:
        """Add a record."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"{stream}/{name}", value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()

    def abandon(self) -> None:
        """Leave it to the writer's own thread, which the process does not wait for."""
