"""One run, here."""

import json
import signal
import time


def run_dir(shell):
    return next((shell.cwd / "outputs").rglob("run.json")).parent


def test_same_config_again_is_left_as_it_is(shell, toy):
    assert "new run" in shell("launch", *toy).stderr
    before = {p: p.read_bytes() for p in run_dir(shell).rglob("*") if p.is_file()}
    assert "already completed" in shell("launch", *toy).stderr
    assert {p: p.read_bytes() for p in run_dir(shell).rglob("*") if p.is_file()} == before


def test_spelling_a_value_otherwise_is_the_same_run(shell, toy):
    shell("launch", *toy, "optimizer.optimizer_params.lr=0.001")
    done = shell("launch", *toy, "optimizer.optimizer_params.lr=1e-3")
    assert "already completed" in done.stderr


def test_interrupted_it_is_resumed_by_the_same_command(shell, toy):
    shell.env["TOY_STEP_S"] = "0.1"
    command = ("launch", *toy, "training.training_params.max_steps=400")
    first = shell.start(*command)
    while (
        not list(shell.cwd.rglob("metrics.jsonl"))
        or len(next(shell.cwd.rglob("metrics.jsonl")).read_text().splitlines()) < 3
    ):
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    running = shell(*command)
    assert "running already" in running.stderr
    first.send_signal(signal.SIGTERM)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 1
    assert "preempted: stopped by SIGTERM after a checkpoint" in said
    shell.env["TOY_STEP_S"] = "0"
    assert "resuming (preempted" in shell(*command).stderr
    steps = [
        json.loads(line)["step"]
        for line in (run_dir(shell) / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, 401))
    attempts = json.loads((run_dir(shell) / "run.json").read_text())["attempts"]
    assert [attempt["attempt"] for attempt in attempts] == [1, 2]


def test_snapshot_composes_back_to_the_same_config(shell, toy):
    shell("launch", *toy, "optimizer=muon", "optimizer.optimizer_params.lr=0.02")
    from omegaconf import OmegaConf

    from sweeps import compose

    saved = OmegaConf.load(run_dir(shell) / ".hydra" / "config.yaml")
    overrides = list(OmegaConf.load(run_dir(shell) / ".hydra" / "overrides.yaml"))
    assert compose(overrides).config == saved


def test_dry_run_says_where_and_writes_nothing(shell, toy):
    done = shell("launch", *toy, "dry_run=true")
    assert "outputs/gpt-tiny/shakespeare/adamw/max_steps-3-" in done.stdout
    assert list(shell.cwd.iterdir()) == []


def test_the_directory_that_hydra_run_dir_names_is_used(shell, toy):
    shell("launch", *toy, "hydra.run.dir=elsewhere")
    assert (shell.cwd / "elsewhere" / "run.json").exists()


def test_a_directory_of_another_run_is_refused(shell, toy):
    shell("launch", *toy, "hydra.run.dir=x")
    before = (shell.cwd / "x" / "run.json").read_bytes()
    done = shell("launch", *toy, "hydra.run.dir=x", "seed=7", code=2)
    assert f"error: {shell.cwd}/x holds another run, " in done.stderr
    assert (shell.cwd / "x" / "run.json").read_bytes() == before


def test_a_completed_run_stays_completed_when_its_claim_is_lost(shell, toy):
    shell("launch", *toy)
    (run_dir(shell) / ".claim.1").unlink()
    before = (run_dir(shell) / "metrics.jsonl").read_bytes()
    assert "already completed" in shell("launch", *toy).stderr
    assert (run_dir(shell) / "metrics.jsonl").read_bytes() == before
