"""The plan of a sweep on disk and in memory."""

from __future__ import annotations

import json

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from rundir import UserError
from sweeps.launch.entry import CONFIG_DIR, CONFIG_NAME
from sweeps.planning import tasks
from sweeps.planning.candidates import candidates
from sweeps.planning.composition import Composer
from sweeps.planning.plan import Candidate, Plan, PlanBase

LR = "optimizer.optimizer_params.lr"
FIXED = ["check=null", "model=nano"]


class CountedBase(PlanBase):
    """A base that counts how often its long texts are compared."""

    comparisons = 0

    def __eq__(self, other: object) -> bool:
        CountedBase.comparisons += 1
        return super().__eq__(other)

    __hash__ = PlanBase.__hash__


@pytest.fixture
def composer():
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        yield Composer(GlobalHydra.instance().config_loader(), CONFIG_NAME)


def many(count: int) -> list[Candidate]:
    bases = [CountedBase((f"optimizer={i}",), "x" * 1000 + str(i), "y") for i in range(20)]
    return [
        Candidate(f"{i:064}", f"n{i}", f"d/n{i}", (f"seed={i}",), {"seed": i}, base, {}, "a.b")
        for i, base in zip(range(count), bases * count, strict=False)
    ]


def test_a_plan_is_read_as_it_was_written(composer, tmp_path):
    points = [{"seed": 1, LR: 0.1, "device": "cpu"}, {"seed": 2, LR: float("inf"), "device": None}]
    plan = Plan("s", tmp_path / "s")
    plan.admit(candidates(composer, "s", points, FIXED))
    plan.write()
    again = Plan.read(plan.root)
    assert (again.runs, again.bases, again.tasks) == (plan.runs, plan.bases, plan.tasks)
    assert again.created_at == plan.created_at


def test_plan_json_has_a_line_for_each_run(tmp_path):
    plan = Plan("s", tmp_path / "s")
    plan.admit(many(5))
    plan.write()
    lines = (plan.home / "plan.json").read_text().splitlines()
    runs = [json.loads(line.rstrip(",")) for line in lines[1:-1]]
    assert [run["name"] for run in runs] == ["n0", "n1", "n2", "n3", "n4"]


def test_promise_19_admitting_runs_compares_each_base_a_few_times_only(tmp_path):
    CountedBase.comparisons = 0
    plan = Plan("s", tmp_path / "s")
    found = many(2000)
    assert plan.admit(found) == list(range(2000))
    plan.renew(range(2000), found)
    assert len(plan.bases) == 20
    assert CountedBase.comparisons < 100


def test_runs_are_recognised_by_their_signature(composer, tmp_path):
    plan = Plan("s", tmp_path / "s")
    first = candidates(composer, "s", [{"seed": 1}, {"seed": 2}], FIXED)
    more = candidates(composer, "s", [{"seed": 3}, {"seed": 2.0}], FIXED)
    assert plan.admit(first) == [0, 1]
    assert plan.admit(more) == [2, 1]


def test_two_points_that_differ_in_what_cannot_matter_are_refused(composer):
    points = [{"seed": 1, "cluster.timeout_min": 5}, {"seed": 1, "cluster.timeout_min": 9}]
    with pytest.raises(UserError) as error:
        candidates(composer, "s", points, FIXED)
    assert str(error.value) == (
        "sweep s: runs (seed=1, timeout_min=5) and (seed=1, timeout_min=9) are the same run "
        "(cluster.timeout_min makes no difference to the result); remove one"
    )


def test_what_runs_ask_of_the_cluster_is_no_part_of_their_names(composer):
    points = [{"seed": 1, "cluster.timeout_min": 5}, {"seed": 2, "cluster.timeout_min": 9}]
    found = candidates(composer, "s", points, FIXED)
    assert [list(one.varying) for one in found] == [["seed"], ["seed"]]
    assert [one.cluster["timeout_min"] for one in found] == [5, 9]
    assert "timeout" not in found[0].name


def test_every_run_is_checked_with_its_own_config(composer, monkeypatch):
    seen = []
    monkeypatch.setattr(tasks, "check", lambda config, here: seen.append((config["seed"], here)))
    candidates(composer, "s", [{"seed": i} for i in range(20)], FIXED, here=False)
    assert seen == [(seed, False) for seed in range(20)]


@pytest.mark.parametrize(
    ("key", "values", "said"),
    [
        (LR, [0.1, 0.2, 0.3, "fast"], "run (lr=fast): optimizer.optimizer_params.lr = 'fast'"),
        ("sed", [1, 2, 3], "run (sed=1): unknown key sed in the config"),
        ("model", ["nano", "micro", "nanoo"], "run (model=nanoo): unknown option nanoo in model"),
        ("optimizer", ["adamw", 3], "run (optimizer=3): optimizer = 3; must be the name of an"),
        ("seed", [1, 2, 3, "${nowhere}"], "run (seed=${nowhere}): Interpolation key 'nowhere'"),
    ],
)
def test_the_error_of_one_run_among_many_names_run_key_and_what_is_legal(
    composer, key, values, said
):
    with pytest.raises(UserError) as error:
        candidates(composer, "s", [{key: value} for value in values], ["model=nano"])
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_promise_19_runs_that_ask_the_same_of_the_cluster_share_what_is_composed(
    composer, tmp_path, monkeypatch
):
    points = [{"seed": seed, "cluster.timeout_min": 5 + seed % 2} for seed in range(6)]
    plan = Plan("s", tmp_path / "s")
    plan.admit(candidates(composer, "s", points, [*FIXED, "cluster=slurm"]))
    plan.write()
    again = Plan.read(plan.root)
    created = []
    create = OmegaConf.create
    monkeypatch.setattr(OmegaConf, "create", lambda *a, **k: created.append(a) or create(*a, **k))
    keys = [again.alike(run) for run in again.runs]
    assert len(set(keys)) == 2
    assert keys[0] == keys[2] != keys[1]
    found = [again.composed(run).resolved for run in again.runs]
    assert [one["seed"] for one in found] == list(range(6))
    assert sum(a[:1] == (again.bases[0].config,) for a in created) == 1, "a base is parsed once"


def test_runs_whose_cluster_node_refers_to_their_config_are_composed_one_by_one(composer, tmp_path):
    plan = Plan("s", tmp_path / "s")
    fixed = [*FIXED, "cluster=slurm", "cluster.comment=${seed}"]
    plan.admit(candidates(composer, "s", [{"seed": 1}, {"seed": 2}], fixed))
    assert plan.alike(plan.runs[0]) != plan.alike(plan.runs[1])
    assert plan.composed(plan.runs[1]).resolved["cluster"]["comment"] == 2
