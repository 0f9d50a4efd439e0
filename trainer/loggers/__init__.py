"""Where a run's records go besides its own files: Weights & Biases and TensorBoard.

``metrics.jsonl`` stays the record that counts; what happens to a copy of it never ends a run.
"""

from trainer.loggers.identity import Identity
from trainer.loggers.relay import Relay, relaying

__all__ = ["Identity", "Relay", "relaying"]
