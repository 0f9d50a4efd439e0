"""What the presets hold; that every one of them composes is tested beside the engine."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from trainer import DatasetConfig, GPTConfig, HuggingFaceConfig, LoggingParams, TrainingParams
from trainer.config.logging import TensorboardParams, WandbParams
from trainer.presets import SIZES

CONF = Path(__file__).parents[2] / "conf"
KINDS: dict[str, tuple[str, type[Any]]] = {
    "model": ("config", GPTConfig),
    "data": ("dataset", DatasetConfig),
    "training": ("training_params", TrainingParams),
    "logging": ("logging_params", LoggingParams),
}
PRESETS = [(group, path.stem) for group in KINDS for path in sorted((CONF / group).glob("*.yaml"))]


LOGGERS: dict[str, type[Any]] = {"wandb": WandbParams, "tensorboard": TensorboardParams}
"""Presets of logging that add one group of keys to those of its default."""


def preset(group: str, name: str) -> dict[str, Any]:
    values = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())[KINDS[group][0]]
    assert isinstance(values, dict)
    return values


@pytest.mark.parametrize(("group", "name"), PRESETS)
def test_a_preset_lists_every_key_so_that_each_can_be_overridden(group: str, name: str) -> None:
    values = preset(group, name)
    kind = HuggingFaceConfig if "architecture" in values else KINDS[group][1]
    if group == "logging" and name in LOGGERS:
        assert list(values) == [name]
        values, kind = values[name], LOGGERS[name]
    legal = {field.name for field in fields(kind)}
    assert set(values) == legal - set(LOGGERS if group == "logging" else ())


def test_every_logger_has_a_preset() -> None:
    optional = {f.name for f in fields(LoggingParams) if "Params" in str(f.type)}
    assert optional == set(LOGGERS)
    assert optional < {path.stem for path in (CONF / "logging").glob("*.yaml")}


@pytest.mark.parametrize("name", [name for group, name in PRESETS if group == "model"])
def test_a_model_follows_the_vocabulary_of_its_data(name: str) -> None:
    assert preset("model", name)["vocab_size"] == "${data.dataset.vocab_size}"


def test_the_sizes_from_python_are_the_model_presets() -> None:
    presets = {path.stem: preset("model", path.stem) for path in (CONF / "model").glob("*.yaml")}
    ours = {name: values for name, values in presets.items() if "architecture" not in values}
    sizes = {name: GPTConfig(**values | {"vocab_size": 50257}) for name, values in ours.items()}
    assert sizes == SIZES


@pytest.mark.parametrize(
    ("name", "millions", "active"), [("qwen2moe-small", 860, 120), ("qwen2moe-medium", 831, 529)]
)
def test_the_models_of_transformers_have_the_sizes_that_their_comments_say(
    name: str, millions: int, active: int
) -> None:
    pytest.importorskip("transformers", reason="needs the extra [hf]")
    from trainer.model import HuggingFaceModel

    shape = HuggingFaceConfig(**preset("model", name) | {"vocab_size": 50257})
    with torch.device("meta"):
        model = HuggingFaceModel(shape, context=1024)
    assert round(model.parameter_count / 1e6) == millions
    assert round(model.active_parameter_count / 1e6) == active
    said = (CONF / "model" / f"{name}.yaml").read_text()
    assert f"{millions}M parameters" in said
    assert f"meets {active}M" in said


def test_the_defaults_from_python_are_the_nano_preset() -> None:
    data = DatasetConfig(**preset("data", "shakespeare"))
    model = preset("model", "nano") | {"vocab_size": data.vocab_size}
    assert GPTConfig(**model) == GPTConfig()
    assert replace(data, vocab_size=None) == DatasetConfig()
    assert LoggingParams(**preset("logging", "default")) == LoggingParams()
    training = TrainingParams(**preset("training", "shakespeare"))
    assert replace(training, max_steps=None) == TrainingParams()


@pytest.mark.parametrize("batch_size", [16, 32])
def test_the_shakespeare_preset_takes_both_batch_sizes(batch_size: int) -> None:
    TrainingParams(**preset("training", "shakespeare") | {"batch_size": batch_size})
