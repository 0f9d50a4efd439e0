"""The group ``logging``: what is written when."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from rundir.errors import UserError, brings, require


@dataclass(frozen=True)
class WandbParams:
    """A copy of the records in Weights & Biases; needs the extra ``[wandb]``.

    The API key is no setting: ``wandb login`` or ``WANDB_API_KEY`` gives it.
    """

    project: str = "optsweep"
    """Where the run is shown."""
    entity: str | None = None
    """User or team; null is the key's own."""
    group: str | None = None
    """null is the sweep's name."""
    tags: tuple[str, ...] = ()
    """Words to find the run by."""
    mode: Literal["online", "offline"] | None = None
    """offline keeps everything in the run directory; null is WANDB_MODE, or online."""

    def __post_init__(self) -> None:
        require(bool(self.project), "project", self.project, "a name")
        _require_package("wandb", "wandb")


@dataclass(frozen=True)
class TensorboardParams:
    """Event files in ``tensorboard/`` of the run directory; needs the extra ``[tensorboard]``."""

    def __post_init__(self) -> None:
        _require_package("tensorboard", "tensorboard")


@lru_cache
def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _require_package(package: str, extra: str) -> None:
    """Refuse a logger whose package is missing, without importing it: that may take seconds."""
    if not _is_installed(package):
        raise UserError(f"+logging={extra} needs {package}: {brings(extra)}")


@dataclass(frozen=True)
class LoggingParams:
    """What is written when; changes no result."""

    val_tokens_processed: int | None = None
    """null, or the one of training_params: it changes what validation measures."""
    log_step: int = 8
    """Steps between two records of the training loss."""
    val_step: int | None = None
    """Steps between two validations; null validates ten times. The last step always validates."""
    save_ckpt_step: int = 500
    """Steps between two checkpoints; the last step saves too. 0 saves only when asked to stop."""
    load_ckpt_step: int = 0
    """Must be 0: a run resumes from its newest good checkpoint by itself."""
    keep_last: int = 2
    """Checkpoints to keep; the older ones are what a torn newest one falls back to."""
    keep_best: int = 0
    """Checkpoints to keep besides, those of lowest validation loss: a validation that earns a place
    among them is followed by a checkpoint. 0 keeps none for that."""
    save_in_background: bool = True
    """Whether training goes on while a copy of its state, in host memory, is written."""
    wandb: WandbParams | None = None
    """Weights & Biases; null logs nothing there."""
    tensorboard: TensorboardParams | None = None
    """TensorBoard's event files; null writes none."""

    def __post_init__(self) -> None:
        for name in ("log_step", "val_step", "keep_last"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "at least 1")
        for name in ("save_ckpt_step", "keep_best"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        own = "a run resumes from its newest good checkpoint by itself"
        require(self.load_ckpt_step == 0, "load_ckpt_step", self.load_ckpt_step, f"0: {own}")
