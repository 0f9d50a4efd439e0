"""What one training run is: a dataclass per config group, checked without torch or numpy.

:meth:`TrainConfig.from_mapping` reads the nested mapping that users write in YAML (the keys are
GPT-opt's); the dataclasses have defaults for use from Python.
"""

from trainer.config.dataset import DatasetConfig
from trainer.config.hugging_face import HuggingFaceConfig
from trainer.config.logging import LoggingParams
from trainer.config.model import GPTConfig
from trainer.config.run import TrainConfig
from trainer.config.training import TrainingParams

__all__ = [
    "DatasetConfig",
    "GPTConfig",
    "HuggingFaceConfig",
    "LoggingParams",
    "TrainConfig",
    "TrainingParams",
]
