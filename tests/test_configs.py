"""Every config and every sweep composes and passes the trainer's check."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

import sweeps
from sweeps.planning import tasks
from trainer import prepare
from trainer.data.catalogue import PREPARED

ROOT = Path(__file__).resolve().parent.parent
GROUPS = ("model", "data", "training", "optimizer", "logging", "paths", "cluster", "debug")


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


def needed(group: str, option: str) -> list[str]:
    """Return what an option needs beside itself."""
    if group == "paths" and option in ("rcond-sweep", "upnorm"):
        return ["optimizer=dap-ns-nadam"]
    if (group, option) == ("data", "text"):
        return [
            f"data.dataset.path={ROOT / 'LICENSE'}",
            "training.training_params.context_length=8",
        ]
    return []


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each dataset that is to be prepared, of a page of text."""
    home = tmp_path_factory.mktemp("data")
    page = home / "page.txt"
    page.write_text((ROOT / "docs" / "optimizers.md").read_text())
    size = ("--tokens", "2000", "--val-tokens", "500", "--workers", "0", "--source", str(page))
    for name in PREPARED:
        assert prepare.main([name, *size, "--out", str(home / name)]) == 0
    return home


def test_every_prepared_dataset_has_a_config():
    assert set(PREPARED) <= set(options("data"))


@pytest.mark.parametrize("name", list(PREPARED))
def test_prepared_data_composes_and_passes_the_check(name, data, monkeypatch):
    monkeypatch.setenv("OPTSWEEP_DATA", str(data))
    tasks.check(sweeps.compose([f"data={name}"]).resolved)


@pytest.mark.parametrize(
    ("group", "option"),
    [
        (group, option)
        for group in GROUPS
        for option in options(group)
        if (group, option) not in {("data", name) for name in PREPARED}
    ],
)
def test_option_composes_and_passes_the_check(group, option):
    prefix = "+" if group == "logging" else ""
    composed = sweeps.compose([f"{prefix}{group}={option}", *needed(group, option)])
    tasks.check(composed.resolved)


@pytest.mark.parametrize("name", options("sweep"))
def test_sweep_opens_with_what_it_shows_its_cost_and_its_command(name):
    lines = (ROOT / "sweeps" / f"{name}.yaml").read_text().splitlines()
    head = "\n".join(line for line in lines[:20] if line.startswith("#"))
    assert lines[0] == "# @package _global_"
    assert f"python launch.py sweep={name}" in head
    assert "Cost:" in head
    assert "Shows:" in head
    assert "Result:" in head


@pytest.mark.parametrize("name", options("sweep"))
def test_every_run_of_a_sweep_composes_and_passes_the_check(name, shell):
    after = yaml.safe_load((ROOT / "sweeps" / f"{name}.yaml").read_text())["sweep"].get("after")
    if after is not None:
        short = ("training.training_params.max_steps=1", "cluster.workers=1")
        shell("launch", f"sweep={after}", *short)
    done = shell("launch", f"sweep={name}", "dry_run=true")
    assert "to submit" in done.stdout
    assert "best(" not in done.stdout


def test_the_learning_rate_sweep_holds_every_optimizer():
    definition = yaml.safe_load((ROOT / "sweeps" / "lr_sensitivity.yaml").read_text())["sweep"]
    held = [name for block in definition["blocks"] for name in block["grid"]["optimizer"]]
    assert sorted(held) == options("optimizer")


@pytest.mark.parametrize("kind", ["LocalCluster", "SlurmCluster"])
def test_the_cluster_configs_list_every_field_and_its_true_default(kind):
    from sweeps.cluster import clusters

    chosen = getattr(clusters, kind)
    text = (ROOT / "conf" / "cluster" / f"{kind[:-7].lower()}.yaml").read_text()
    listed = yaml.safe_load(text)["cluster"]
    defaults = vars(chosen())
    assert listed == {key: defaults[key] for key in set(defaults) - set(clusters.FIXED)}


def test_the_training_and_logging_configs_list_every_key():
    from trainer.config import LoggingParams, TrainingParams
    from trainer.config.logging import WandbParams

    def listed(name, *path):
        node = yaml.safe_load((ROOT / "conf" / name).read_text())
        for key in path:
            node = node[key]
        return node

    def defaults(params):
        values = {field.name: getattr(params(), field.name) for field in dataclasses.fields(params)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    assert listed("training/shakespeare.yaml", "training_params").keys() == set(
        defaults(TrainingParams)
    )
    own = {"wandb": None, "tensorboard": None}
    assert listed("logging/default.yaml", "logging_params") | own == defaults(LoggingParams)
    assert listed("logging/wandb.yaml", "logging_params", "wandb") == defaults(WandbParams)
    assert listed("logging/tensorboard.yaml", "logging_params") == {"tensorboard": {}}


def test_the_link_to_the_sweeps_is_in_place():
    assert (ROOT / "conf" / "sweep").resolve() == ROOT / "sweeps"


def test_the_commands_that_gpt_opt_users_type_compose():
    for overrides in (
        ["model=gpt-medium", "optimizer=dap-ns-nadam"],
        ["optimizer.optimizer_params.lr=0.0005", "training.training_params.max_steps=1000"],
        ["+logging=default", "logging.logging_params.val_step=64"],
        [
            "paths=upnorm",
            "optimizer=dap-ns-nadam-accel",
            "optimizer.optimizer_params.update_norm=True",
        ],
    ):
        tasks.check(sweeps.compose(overrides).resolved)
