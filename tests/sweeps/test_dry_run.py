import json

import pytest

from sweeps.cluster.clusters import SlurmCluster, cluster
from sweeps.launch.preview import Array, rough
from sweeps.records.ledger import SLURM, Share, Submission


def test_promise_12_shows_every_run_its_directory_and_the_workers_and_writes_nothing(shell, toy):
    done = shell("launch", "-m", *toy, "paths.sweep=s", "dry_run=true", "seed=1,2,3")
    for seed in (1, 2, 3):
        assert f"multirun/s/gpt-tiny/shakespeare/adamw/seed-{seed}-" in done.stdout
    assert "sweeps.workers" in done.stdout
    assert "3 runs to submit as" in done.stdout
    assert "\neach run: 1 CPU, no GPU, no time limit\n" in done.stdout
    assert not [line for line in done.stdout.splitlines() if line != line.rstrip()]
    assert "nothing was submitted or written" in done.stderr
    assert list(shell.cwd.iterdir()) == []


def test_promise_03_tells_new_runs_from_complete_ones(shell, toy):
    shell("launch", "-m", *toy, "paths.sweep=s", "seed=1,2")
    done = shell("launch", "-m", *toy, "paths.sweep=s", "dry_run=true", "seed=1,2,3")
    assert [line.split()[2] for line in done.stdout.splitlines()[1:4]] == [
        "completed",
        "completed",
        "new",
    ]
    assert "1 run to submit as 1 worker" in done.stdout


def test_promise_12_json_holds_the_runs_the_workers_and_the_totals(shell, toy):
    command = ("launch", "-m", *toy, "paths.sweep=s", "seed=1,2", "cluster.cpus_per_task=1")
    shown = json.loads(shell(*command, "dry_run=true", "--json").stdout)
    assert [run["state"] for run in shown["runs"]] == ["new", "new"]
    assert [run["varying"] for run in shown["runs"]] == [{"seed": 1}, {"seed": 2}]
    assert shown["runs"][0]["resources"]["cpus_per_task"] == 1
    assert not [text for text in shown["runs"][0]["overrides"] if "dry_run" in text]
    assert shown["arrays"][0]["runs"] == [0, 1]
    assert "sweeps.workers" in shown["arrays"][0]["script"]
    assert shown["totals"]["to_submit"] == 2
    assert shown["totals"]["gpu_hours"] is None, "without a time limit nobody knows"
    assert list(shell.cwd.iterdir()) == []


def test_json_of_a_single_run(shell, toy):
    shown = json.loads(shell("launch", *toy, "dry_run=true", "--json").stdout)
    assert shown["state"] == "new run"
    assert shown["start"] is True
    assert shown["directory"].startswith("outputs/gpt-tiny/shakespeare/adamw/")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--json"], "--json is for a dry run; add dry_run=true"),
        (["dry_run=maybe"], "dry_run = 'maybe'; must be true, false or json"),
    ],
)
def test_what_is_no_dry_run_is_refused_in_words(shell, toy, words, said):
    for mode in (["-m", "paths.sweep=s"], []):
        assert shell("launch", *mode, *toy, *words, code=2).stderr == f"error: {said}\n"
    assert list(shell.cwd.iterdir()) == []


def array(kind, node, runs=4, drain=False, **share):
    built = cluster(kind, node)
    shared = Share(SLURM, tuple((i, 1) for i in range(runs)), runs, drain, **share)
    return Array(built, Submission("abc", shared, "hash", "/"), "script").each


@pytest.mark.parametrize(
    ("hours", "said"), [(1 / 60, "0.0167"), (4 / 3, "1.33"), (99.96, "100"), (12345.6, "12,346")]
)
def test_hours_are_said_in_few_digits(hours, said):
    assert rough(hours) == said


def test_what_each_run_gets_is_said_in_words():
    one = {"timeout_min": 60, "cpus_per_task": 4}
    assert array(SlurmCluster, one, threads=4) == "4 CPUs, no GPU, at most 60 min"
    ranks = one | {"tasks_per_node": 2, "gpus_per_node": 2}
    assert array(SlurmCluster, ranks, threads=4) == "2 processes, 8 CPUs, 2 GPUs, at most 60 min"
    packed = one | {"gpus_per_node": 1, "runs_per_gpu": 2}
    assert array(SlurmCluster, packed, threads=4, slots=2, runs_per_gpu=2, drain=True) == (
        "2 CPUs, a GPU shared by 2 runs, at most 60 min a worker"
    )
    default = array(SlurmCluster, {"timeout_min": 60}, threads=None)
    assert default == "the cluster's default of CPUs, no GPU, at most 60 min"


def test_one_run_is_not_trained_on_the_login_node_when_it_was_meant_for_slurm(shell, toy):
    shell.env.pop("SLURM_JOB_ID", None)
    done = shell("launch", *toy, "cluster=slurm", code=2)
    assert done.stderr == (
        "error: cluster=slurm is for sweeps; add -m (one run is a sweep of one)\n"
    )
    assert list(shell.cwd.iterdir()) == []
    shell.env["SLURM_JOB_ID"] = "1"
    assert "new run" in shell("launch", *toy, "cluster=slurm", "dry_run=true").stdout


def test_a_definition_without_its_sweep_node_is_refused_and_not_taken_for_one_run(shell, toy):
    (shell.cwd / "mine" / "sweep").mkdir(parents=True)
    head = "# @package _global_\nhydra: {mode: MULTIRUN}\n"
    (shell.cwd / "mine" / "sweep" / "lost.yaml").write_text(head + "grid: {seed: [1, 2]}\n")
    done = shell("launch", "--config-dir", "mine", *toy, "sweep=lost", code=2)
    assert done.stderr == (
        "error: sweep lost: grid must stand below `sweep:`; as it is, the definition is one run\n"
    )
    assert not (shell.cwd / "multirun").exists()
