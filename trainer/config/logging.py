"""The group ``logging``: what is written when."""

from __future__ import annotations

from dataclasses import dataclass

from rundir.errors import require


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

    def __post_init__(self) -> None:
        for name in ("log_step", "val_step", "keep_last"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "at least 1")
        require(self.save_ckpt_step >= 0, "save_ckpt_step", self.save_ckpt_step, "at least 0")
        own = "a run resumes from its newest good checkpoint by itself"
        require(self.load_ckpt_step == 0, "load_ckpt_step", self.load_ckpt_step, f"0: {own}")
