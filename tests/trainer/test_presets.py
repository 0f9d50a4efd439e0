from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import trainer

CONF = Path(__file__).parents[2] / "conf"
NAMES = {
    group: sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    for group in ("model", "data", "training", "logging", "optimizer")
}
DEFAULTS = {
    "model": "nano",
    "data": "shakespeare",
    "training": "shakespeare",
    "logging": "default",
    "optimizer": "adamw",
}


def composed(choices: dict[str, str], **values: object) -> dict[str, Any]:
    """Resolve one preset of each group, as Hydra puts them together."""
    groups = {
        group: OmegaConf.load(CONF / group / f"{name}.yaml") for group, name in choices.items()
    }
    config = OmegaConf.create(groups)
    for key, value in values.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    return resolved  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group, names in NAMES.items() for name in names]
)
def test_every_preset_composes_to_a_configuration_that_trains(
    group: str, name: str, tmp_path: Path
) -> None:
    values: dict[str, object] = {}
    if name == "text":
        (tmp_path / "mine.txt").write_text("x" * 2000)
        values["data__dataset__path"] = str(tmp_path)
    trainer.check(composed(DEFAULTS | {group: name}, **values))


@pytest.mark.parametrize("name", NAMES["model"])
def test_a_model_follows_the_vocabulary_of_its_data(name: str) -> None:
    config = composed(DEFAULTS | {"model": name, "data": "shakespeare_gpt2"})
    assert config["model"]["config"]["vocab_size"] == 50257
    trainer.check(config)


def test_the_defaults_from_python_are_the_nano_preset() -> None:
    preset = trainer.TrainConfig.from_mapping(composed(DEFAULTS))
    assert preset.model == trainer.GPTConfig()
    assert preset.model_name == trainer.TrainConfig().model_name


@pytest.mark.parametrize("batch_size", [16, 32])
def test_the_shakespeare_preset_takes_both_batch_sizes(batch_size: int) -> None:
    trainer.check(composed(DEFAULTS, training__training_params__batch_size=batch_size))
