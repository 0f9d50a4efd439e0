"""What a run leaves of its state, and goes on from.

files      one file a checkpoint: written whole or not at all, hashed, the older ones kept
keeper     what of a run is saved and restored, and when
snapshot   a copy of the state, so that training goes on meanwhile
writer     the thread that writes it
"""

from trainer.checkpoints.files import (
    Kept,
    best_steps,
    fault_of,
    list_checkpoints,
    losses_of,
    newest_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from trainer.checkpoints.keeper import Keeper, weights_to_validate

__all__ = [
    "Keeper",
    "Kept",
    "best_steps",
    "fault_of",
    "list_checkpoints",
    "losses_of",
    "newest_checkpoint",
    "read_checkpoint",
    "save_checkpoint",
    "weights_to_validate",
]
