"""Composed once per choice of groups, a run's config equals what Hydra itself composes for it."""

from __future__ import annotations

import itertools

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import OmegaConf

from rundir import UserError
from sweeps.launch import entry
from sweeps.launch.entry import CONFIG_DIR, CONFIG_NAME
from sweeps.planning.candidates import candidates
from sweeps.planning.composition import Composer, resolve, split
from sweeps.planning.plan import Plan

LR = "optimizer.optimizer_params.lr"
SAMPLES = [
    [],
    ["optimizer=muon", f"{LR}=0.03", "seed=1"],
    [f"{LR}=0.03", "optimizer=dap-ns-nadam", "model=micro"],
    ["sweep=quickstart", "optimizer=muon", f"{LR}=1e-2"],
    ["+logging=default", "logging.logging_params.val_step=64", "debug=smoke"],
    ["training.training_params.max_steps=null", "optimizer.optimizer_params.betas=[0.9,0.99]"],
    ["+data.dataset.path='a b,c'", "data=text", "~seed"],
    ["cluster=slurm", "cluster.setup=[a,'b c']", "+cluster.additional_parameters.x=1"],
    [
        "++training.training_params.max_steps=7",
        "model.config.vocab_size=${training.training_params.max_steps}",
    ],
]


@pytest.fixture
def loader():
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


@pytest.mark.parametrize("overrides", SAMPLES, ids=" ".join)
def test_equals_what_hydra_composes(loader, overrides):
    master = loader.load_configuration(CONFIG_NAME, [], run_mode=RunMode.MULTIRUN)
    theirs = split(loader.load_sweep_config(master, overrides)).config
    ours = Composer(loader, CONFIG_NAME).compose(overrides)
    assert OmegaConf.to_yaml(ours.config) == OmegaConf.to_yaml(theirs)
    assert ours.resolved == resolve(theirs)


def test_runs_that_differ_in_values_are_composed_from_one_tree(loader):
    calls = []
    composer = Composer(loader, CONFIG_NAME)
    load = composer._load
    composer._load = lambda groups: calls.append(groups) or load(groups)
    for optimizer, lr in itertools.product(["adamw", "muon"], range(1, 20)):
        composed = composer.compose([f"optimizer={optimizer}", f"{LR}={lr}"])
        assert composed.resolved["optimizer"]["optimizer_params"]["lr"] == lr
    assert calls == [("optimizer=adamw",), ("optimizer=muon",)]


def test_a_planned_run_composes_again_from_the_plan_alone(loader, tmp_path):
    plan = Plan("s", tmp_path / "s")
    composer = Composer(loader, CONFIG_NAME)
    points = [{"optimizer": "adamw", LR: 0.1}, {"optimizer": "muon", LR: 0.2}]
    fixed = ["model=micro", "+logging.tag=${hydra:runtime.choices.optimizer}"]
    plan.admit(candidates(composer, "s", points, ["check=null", *fixed]))
    plan.write()
    for run, chosen in zip(Plan.read(plan.root).runs, ["adamw", "muon"], strict=True):
        again = plan.composed(run)
        assert again.resolved["logging"]["tag"] == chosen
        first = composer.compose(run.overrides)
        assert again.resolved == first.resolved
        assert OmegaConf.to_yaml(again.config) == OmegaConf.to_yaml(first.config)


def test_a_run_that_resolves_to_something_else_later_is_refused(loader, tmp_path, monkeypatch):
    plan = Plan("s", tmp_path / "s")
    monkeypatch.setenv("TAG", "1")
    fixed = ["check=null", "+tag=${oc.env:TAG}"]
    plan.admit(candidates(Composer(loader, CONFIG_NAME), "s", [{"seed": 1}], fixed))
    plan.composed(plan.runs[0])
    monkeypatch.setenv("TAG", "2")
    with pytest.raises(UserError, match="resolves to other values here than at the launch"):
        plan.composed(plan.runs[0])


def test_an_error_of_hydras_is_told_also_where_explaining_it_fails(monkeypatch):
    def compose(*_):
        raise KeyError("what?")

    monkeypatch.setattr(entry, "compose", compose)
    said = entry.explain(["seed=1"], str(CONFIG_DIR), ConfigCompositionException("Hydra's\nwords"))
    assert str(said) == "Hydra's words"
