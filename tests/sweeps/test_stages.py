"""Second stages: what the best run of the first one is, and when there is none."""

import json
import math

import pytest

from rundir import State, Status, UserError, write_json
from rundir.files import write_status
from sweeps.cluster.launchers import LocalLauncher
from sweeps.launch import outlook, stages
from sweeps.launch.stages import After, FirstStage, Unfinished
from sweeps.planning.plan import Plan, PlanBase, PlannedRun

LR = "optimizer.optimizer_params.lr"
HEAD = "# @package _global_\nhydra: {mode: MULTIRUN}\n"


def stage(tmp_path, runs):
    """Write a first stage `one`: a list of (state, optimizer, lr, losses)."""
    plan = Plan("one", tmp_path / "one")
    for i, (state, optimizer, lr, losses) in enumerate(runs):
        base = PlanBase((), "", f"runtime: {{choices: {{optimizer: {optimizer}}}}}")
        if base not in plan.bases:
            plan.bases.append(base)
        run = PlannedRun(i, f"r{i}", f"r{i}", str(i) * 64, (), {}, plan.bases.index(base))
        plan.runs.append(run)
        directory = plan.directory(run)
        directory.mkdir(parents=True)
        params = {"lr": lr, "name": optimizer}
        write_json(
            directory / "run.json",
            {"config": {"seed": i, "optimizer": {"optimizer_params": params}}},
        )
        if state is not State.PLANNED:
            write_status(directory, Status(state, reason="why" if state is State.FAILED else None))
        lines = [
            {"stream": "val", "step": step, "t": 0, "attempt": 1, "loss": loss, "accuracy": -loss}
            for step, loss in enumerate(losses)
        ]
        lines += [{"stream": "train", "step": 9, "t": 0, "attempt": 1, "loss": 0.0}]
        text = "\n".join(json.dumps(line) for line in lines)
        (directory / "metrics.jsonl").write_text(text + '\n{"stream": "val", "st')
    plan.write()


def first(tmp_path, folders=(), **after):
    return FirstStage.find(After("one", **after), "two", tmp_path, folders)


DONE = State.COMPLETED


def test_best_is_the_completed_run_with_the_least_final_value(tmp_path):
    stage(
        tmp_path,
        [
            (DONE, "adamw", 0.1, [5.0, 3.0]),
            (DONE, "muon", 0.2, [1.0, 2.0]),
            (DONE, "adamw", 0.3, [0.1, 2.5]),
        ],
    )
    found = first(tmp_path)
    assert found.best(LR) == 0.2
    assert found.best("optimizer") == "muon"
    assert found.best(LR, "optimizer:adamw") == 0.3
    assert found.best(LR, "optimizer=adamw", f"{LR}=1e-1") == 0.1
    assert first(tmp_path, mode="max").best(LR) == 0.1
    assert first(tmp_path, metric="val/accuracy", mode="max").best(LR) == 0.2


def test_of_equals_the_first_counts(tmp_path):
    stage(tmp_path, [(DONE, "adamw", 0.1, [1.0]), (DONE, "adamw", 0.2, [1.0])])
    assert first(tmp_path).best(LR) == 0.1
    assert first(tmp_path, mode="max").best(LR) == 0.1


def test_diverged_runs_and_runs_without_a_finite_value_are_never_best(tmp_path):
    stage(
        tmp_path,
        [
            (State.DIVERGED, "adamw", 0.1, [0.1]),
            (DONE, "adamw", 0.2, [0.1, math.nan]),
            (DONE, "adamw", 0.3, [-math.inf]),
            (DONE, "adamw", 0.4, []),
            (DONE, "adamw", 0.5, [7.0]),
        ],
    )
    assert first(tmp_path).best(LR) == 0.5
    assert first(tmp_path, mode="max").best(LR) == 0.5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["optimizer.optimizer_params.lrr"],
            (
                "unknown key lrr in optimizer.optimizer_params of r0, a run of one; "
                "must be one of: lr, name; did you mean lr?"
            ),
        ),
        (
            ["sed"],
            (
                "unknown key sed in the config of r0, a run of one; "
                "must be one of: optimizer, seed; did you mean seed?"
            ),
        ),
        (["seed.x"], "unknown key x in seed of r0, a run of one; must be one of: none exist"),
        ([LR, "optimizer:sgd"], "sweep.after: no run of one with optimizer:sgd completed"),
        ([LR, "muon"], "${best:…,muon}: a filter must be key:value or 'key=value'"),
    ],
)
def test_what_is_wrong_with_a_best_is_said_in_one_line(tmp_path, arguments, said):
    stage(tmp_path, [(DONE, "adamw", 0.1, [5.0])])
    with pytest.raises(UserError) as error:
        first(tmp_path).best(*arguments)
    assert str(error.value) == said


def test_an_unknown_metric_is_told_from_one_that_is_nowhere_finite(tmp_path):
    stage(tmp_path, [(DONE, "adamw", 0.1, [math.nan])])
    with pytest.raises(UserError, match=r"unknown metric val/lss .*did you mean val/loss\?$"):
        first(tmp_path, metric="val/lss").best(LR)
    with pytest.raises(UserError, match=r"no completed run of one has a finite val/loss$"):
        first(tmp_path).best(LR)


def test_a_first_stage_that_logs_another_loss_than_the_default_is_told_how_to_name_it(tmp_path):
    """As a task of one's own does, which has no validation."""
    stage(tmp_path, [(DONE, "adamw", 0.1, [5.0])])
    for path in tmp_path.rglob("metrics.jsonl"):
        path.write_text(path.read_text().replace('"val"', '"train"'))
    hint = r"; write after: {sweep: one, metric: train/loss}$"
    with pytest.raises(UserError, match=r"unknown metric val/loss .*" + hint):
        first(tmp_path).best(LR)


def test_a_first_stage_with_failed_runs_is_refused_unless_they_are_allowed(tmp_path):
    stage(tmp_path, [(DONE, "adamw", 0.1, [5.0]), (State.FAILED, "adamw", 0.2, [1.0])])
    with pytest.raises(UserError) as error:
        first(tmp_path)
    assert str(error.value) == (
        "sweep two comes after one, which ended badly (2 runs: 1 completed, 1 failed: r1); "
        f"python -m sweeps retry {tmp_path}/one, or write allow_failed: true into sweep.after"
    )
    assert first(tmp_path, allow_failed=True).best(LR) == 0.1


def test_without_any_completed_run_there_is_no_best(tmp_path):
    stage(tmp_path, [(State.DIVERGED, "adamw", 0.1, [5.0])])
    with pytest.raises(UserError, match=r"^sweep.after: no run of one completed$"):
        first(tmp_path).best(LR)


@pytest.mark.parametrize("launched", [True, False])
def test_an_unfinished_first_stage_is_refused_with_the_command_to_type(
    tmp_path, launched, monkeypatch
):
    monkeypatch.setattr("sys.argv", ["launch.py", "sweep=two", "cluster=slurm", "seed=1"])
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "one.yaml").write_text("sweep: {seeds: 1}\n")
    if launched:
        stage(tmp_path, [(DONE, "adamw", 0.1, [5.0]), (State.PLANNED, "adamw", 0.2, [])])
    with pytest.raises(Unfinished) as error:
        first(tmp_path, [tmp_path / "sweep"])
    assert not error.value.jobs
    how = "was never launched; launch it first"
    if launched:
        how = "is not complete (2 runs: 1 planned, 1 completed); launch it again"
    command = "python launch.py sweep=one cluster=slurm"
    assert str(error.value) == f"sweep two comes after one, which {how}: {command}"


def test_circles_are_refused_with_the_whole_way_round(tmp_path):
    for name, after in (("a", "b"), ("b", "{sweep: c}"), ("c", "a"), ("d", "d"), ("e", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"sweep: {{after: {after}}}\n")
    for name, after, way in (
        ("a", "b", "a after b after c after a"),
        ("d", "d", "d after d"),
        ("e", "a", "e after a after b after c after a"),
    ):
        with pytest.raises(UserError, match=f"^sweep.after leads in a circle: {way}$"):
            stages.require_no_circle(After(after), [name, None], [tmp_path])


def test_a_chain_of_stages_is_no_circle(tmp_path):
    (tmp_path / "b.yaml").write_text("sweep: {after: c}\n")
    (tmp_path / "c.yaml").write_text("sweep: {after: 5}\n")
    stages.require_no_circle(After("b"), ["a", "a"], [tmp_path])
    stages.require_no_circle(After("nowhere"), ["a", None], [tmp_path])


@pytest.fixture
def two_stages(shell, toy):
    """Return what launches a sweep of one's own: `one`, and `two` after it."""
    folder = shell.cwd / "mine" / "sweep"
    folder.mkdir(parents=True)
    (folder / "one.yaml").write_text(
        HEAD + f"sweep: {{grid: {{optimizer: [adamw, muon], {LR}: [0.3, 0.1]}}}}\n"
    )
    (folder / "two.yaml").write_text(
        HEAD + "sweep:\n  after: {sweep: one, metric: train/loss}\n  grid:\n"
        f'    optimizer: ["${{best:optimizer}}", "${{best:optimizer,optimizer:muon}}"]\n'
        f'    {LR}: ["${{best:{LR}}}"]\n    seed: [1, 2]\n'
    )
    return lambda sweep, *more, code=0: shell(
        "launch", "--config-dir", "mine", *toy, f"sweep={sweep}", *more, code=code
    )


def test_promise_18_a_second_sweep_takes_what_the_first_one_found(shell, two_stages):
    refused = two_stages("two", code=2)
    assert refused.stderr == (
        "error: sweep two comes after one, which was never launched; "
        "launch it first: python launch.py sweep=one --config-dir mine\n"
    )
    dry = two_stages("two", "dry_run=true")
    assert f"optimizer=best(optimizer), lr=best({LR}), seed=1" in dry.stdout
    assert "seed=1  (1 CPU, no GPU, no time limit)" in dry.stdout
    assert "4 runs to submit when one is over; their directories, scripts and hours" in dry.stdout
    assert "was never launched" in dry.stderr
    shown = json.loads(two_stages("two", "dry_run=true", "--json").stdout)
    assert (shown["sweep"], shown["directory"]) == ("two", "multirun/two")
    assert shown["waits_for"]["sweep"] == "one"
    assert "was never launched" in shown["waits_for"]["why"]
    assert shown["runs"][0]["varying"]["seed"] == 1
    assert shown["runs"][0]["resources"]["cpus_per_task"] == 1
    assert shown["script"] is None, "no job of the first stage is there to wait for"
    assert not (shell.cwd / "multirun").exists()
    two_stages("one")
    two_stages("two")
    records = [json.loads(f.read_text()) for f in (shell.cwd / "multirun/two").rglob("run.json")]
    assert sorted(record["overrides"][-3:] for record in records) == [
        [f"optimizer={name}", f"{LR}=0.1", f"seed={seed}"]
        for name in ("adamw", "muon")
        for seed in (1, 2)
    ]
    assert "4 completed; none to submit" in two_stages("two").stderr
    run = next((shell.cwd / "multirun/two").rglob("run.json")).parent
    shell.cwd.joinpath("multirun/one").rename(shell.cwd / "gone")
    again = shell("-m", "sweeps", "rerun", str(run), "--verify")
    assert "equal" in again.stdout + again.stderr


@pytest.mark.parametrize(
    ("point", "asked"),
    [
        ({"seed": 1}, 60),
        ({"cluster.timeout_min": 5}, 5),
        ({"++cluster.timeout_min": 5, "optimizer": "best(optimizer)"}, 5),
        ({"cluster.timeout_min": "best(cluster.timeout_min)"}, None),
    ],
)
def test_what_a_run_of_a_waiting_stage_asks_for_is_known_but_where_it_is_to_be_found(point, asked):
    found = outlook.asked_by(point, {"timeout_min": 60}, LocalLauncher)
    assert (found and found.timeout_min) == asked


def test_what_a_waiting_stage_can_not_ask_for_is_refused_before_it_waits():
    with pytest.raises(UserError, match=r"^unknown key timeout_mni in cluster"):
        outlook.asked_by({"++cluster.timeout_mni": 5}, {}, LocalLauncher)


def test_best_without_a_first_stage_is_refused(two_stages):
    done = two_stages("two", "sweep.after=null", code=2)
    assert done.stderr == (
        "error: sweep.grid.optimizer[0]: ${best:…} needs a first stage; "
        "write after: NAME into the definition\n"
    )
