"""One run, here."""

import json
import shutil
import signal
import time
from types import SimpleNamespace

import pytest

from rundir import State, Superseded, read_status
from sweeps.launch.single import CLAIM, _next_attempt, job_of, new_directory
from sweeps.records import claims
from sweeps.records.owners import Owner, myself
from sweeps.workers import execution


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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 1), (signal.SIGINT, 130)])
def test_interrupted_it_is_resumed_by_the_same_command(shell, toy, number, code):
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
    first.send_signal(number)
    _, said = first.communicate(timeout=60)
    assert first.returncode == code
    assert "stopping at the next step (Ctrl-C again: at once)\n" in said
    assert f"preempted: stopped by {number.name} after a checkpoint" in said
    assert said.endswith("train.log; launch again to go on\n")
    shell.env["TOY_STEP_S"] = "0"
    assert "resuming (preempted" in shell(*command).stderr
    steps = [
        json.loads(line)["step"]
        for line in (run_dir(shell) / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, 401))
    attempts = json.loads((run_dir(shell) / "run.json").read_text())["attempts"]
    assert [attempt["attempt"] for attempt in attempts] == [1, 2]


def test_a_run_that_ends_well_after_another_took_its_place_tells_its_caller_so(
    tmp_path, monkeypatch
):
    successor = tmp_path / "claim.2"
    monkeypatch.setattr(execution, "write_snapshot", lambda *_: None)
    monkeypatch.setattr(execution, "task_config", dict)
    monkeypatch.setattr(execution.tasks, "load", lambda *_: lambda *_: successor.touch())
    job = execution.Job(SimpleNamespace(resolved={"task": "toy"}), tmp_path, "name", "f" * 64)
    status = execution.execute(job, 1, 1, successor=successor)
    assert status.state is State.FAILED
    assert status.reason == "attempt 2 at this run has begun; attempt 1 ends"
    assert status.exit_code == Superseded.exit_code
    assert read_status(tmp_path).state is State.RUNNING


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


def test_a_run_is_found_again_in_whatever_order_it_is_typed_and_with_defaults_spelt_out(shell, toy):
    shell("launch", *toy, "seed=5")
    for words in (("seed=5", *toy), (*toy, "seed=5", "device=auto")):
        assert "already completed" in shell("launch", *words).stderr
    assert len(list((shell.cwd / "outputs").rglob("run.json"))) == 1


def composed(**config):
    from omegaconf import OmegaConf

    from sweeps.planning.composition import Composed

    node = OmegaConf.create({"paths": {"outputs": "out", "group": "g", "run_name": None}, **config})
    words = tuple(f"{key}={value}" for key, value in config.items())
    return Composed(words, (), node, OmegaConf.to_container(node), OmegaConf.create())


def test_only_a_directory_of_the_very_signature_is_the_runs_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = composed(seed=5)
    fresh = new_directory(run)
    signed = job_of(run).signature
    others = {f"a-{signed[:6]}": "another", f"{fresh.name}-rerun-1": signed, "b-000000": signed}
    for name, held in others.items():
        (fresh.parent / name).mkdir(parents=True)
        (fresh.parent / name / "run.json").write_text(json.dumps({"signature": held}))
    (fresh.parent / f"c-{signed[:6]}").mkdir()
    assert job_of(run).directory == fresh
    (fresh.parent / f"c-{signed[:6]}" / "run.json").write_text(json.dumps({"signature": signed}))
    assert job_of(run).directory.name == job_of(run).name == f"c-{signed[:6]}"


def test_the_order_of_the_words_does_not_change_a_new_runs_name():
    assert new_directory(composed(seed=5, lr=1)).name == new_directory(composed(lr=1, seed=5)).name


def test_promise_10_runs_that_share_a_name_never_share_a_directory(shell, toy):
    """Launched at the same time with the same ``paths.run_name``."""
    both = [shell.start("launch", *toy, f"seed={seed}", "paths.run_name=mine") for seed in (1, 2)]
    for launch in both:
        _, said = launch.communicate(timeout=120)
        assert launch.returncode == 0, said
    records = [json.loads(p.read_text()) for p in (shell.cwd / "outputs").rglob("run.json")]
    assert sorted(record["config"]["seed"] for record in records) == [1, 2]
    assert [len(record["attempts"]) for record in records] == [1, 1]


def test_promise_03_the_metrics_of_a_run_are_never_overwritten(shell, toy):
    """Launched again after its status was lost, a run goes on in a record of its own."""
    shell("launch", *toy)
    directory = run_dir(shell)
    before = (directory / "metrics.jsonl").read_bytes()
    (directory / "status.json").unlink()
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    assert "new run" not in shell("launch", *toy).stderr
    after = (directory / "metrics.jsonl").read_bytes()
    assert after.startswith(before)
    assert len(after) > len(before)


@pytest.fixture
def held(tmp_path, monkeypatch):
    """Tell what is made of a run that a process of another machine claimed."""
    (tmp_path / "squeue").write_text("#!/bin/sh\necho '77|N/A|RUNNING|n1|None|name'\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    job = job_of(composed(seed=5), tmp_path / "run")

    def found(owner: Owner) -> tuple[int | None, str]:
        claims.claim(job.directory, CLAIM, 1, owner)
        return _next_attempt(job)

    return found


def test_a_run_whose_job_has_left_the_queue_is_resumed(held):
    attempt, said = held(Owner("n2", "boot", 1, 1, "76"))
    assert (attempt, said) == (
        2,
        "resuming (lost: job 76 left the queue without ending the run)",
    )


def test_a_run_whose_job_is_in_the_queue_is_left_alone(held):
    attempt, said = held(Owner("n1", "boot", 1, 1, "77"))
    assert attempt is None
    assert said.startswith("running already, as process 1 on n1 in job 77; if that is gone")


def test_a_run_whose_job_slurm_has_begun_again_elsewhere_goes_on(held, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert held(Owner("n2", "boot", 1, 1, "77", 0))[0] == 2


def test_where_nobody_can_tell_whether_a_run_lives_the_claim_to_delete_is_named(held, tmp_path):
    attempt, said = held(Owner("n2", "boot", 7, 1))
    assert attempt is None
    assert said == (
        "running already, as process 7 on n2; if that is gone for sure, "
        f"delete {tmp_path}/run/.claim.1"
    )


def test_a_run_of_a_live_process_here_is_left_alone(held):
    me = myself()
    assert held(me) == (None, f"running already, as process {me.pid} on {me.host}")
