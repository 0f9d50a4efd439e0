import json

import pytest


def test_promise_12_shows_every_run_its_directory_and_the_workers_and_writes_nothing(shell, toy):
    done = shell("launch", "-m", *toy, "paths.sweep=s", "dry_run=true", "seed=1,2,3")
    for seed in (1, 2, 3):
        assert f"multirun/s/gpt-tiny/shakespeare/adamw/seed-{seed}-" in done.stdout
    assert "sweeps.work.worker" in done.stdout
    assert "3 runs to submit as" in done.stdout
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
    assert shown["arrays"][0]["runs"] == [0, 1]
    assert "sweeps.work.worker" in shown["arrays"][0]["script"]
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
