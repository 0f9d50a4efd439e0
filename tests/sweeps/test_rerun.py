import json
import shutil
from pathlib import Path

import pytest
import yaml

from sweeps.__main__ import main
from sweeps.commands import rerun

LR = "optimizer.optimizer_params.lr"


@pytest.fixture
def original(shell, toy):
    shell("launch", *toy, "optimizer.optimizer_params.lr=0.02")
    return next((shell.cwd / "outputs").rglob("run.json")).parent


def reruns(shell):
    return sorted(
        p.parent for p in (shell.cwd / "outputs").rglob("run.json") if "-rerun-" in str(p)
    )


def test_promise_04_a_run_is_repeated_into_a_directory_of_its_own_which_says_of_what(
    shell, original
):
    before = (original / "metrics.jsonl").read_bytes()
    done = shell("-m", "sweeps", "rerun", str(original), "--verify")
    assert done.stdout == "equal to the bit: 3 values\n"
    (again,) = reruns(shell)
    record = json.loads((again / "run.json").read_text())
    assert record["rerun_of"] == str(original)
    assert (
        record["attempts"][0]["threads"]
        == json.loads((original / "run.json").read_text())["attempts"][0]["threads"]
    )
    assert (original / "metrics.jsonl").read_bytes() == before
    shell("-m", "sweeps", "rerun", str(original))
    assert [path.name[-8:] for path in reruns(shell)] == ["-rerun-1", "-rerun-2"]


def test_shows_what_changed_and_verify_names_the_first_difference(shell, original):
    lr = "optimizer.optimizer_params.lr"
    done = shell("-m", "sweeps", "rerun", str(original), f"{lr}=0.03", "--verify", code=1)
    assert f"{lr}: 0.02 → 0.03" in done.stderr
    assert done.stdout == (
        "different at train step 1: loss 1.02 → 1.03 "
        "(relative difference 0.0097, tolerance 1e-05)\n"
    )


def test_verify_of_a_repeat_that_fails_says_that_nothing_was_compared(shell, original):
    done = shell("-m", "sweeps", "rerun", str(original), "seed=903", "--verify", code=1)
    assert done.stderr.endswith("not compared: the repeat ended as failed\n")


def test_a_rerun_bears_one_name_which_ends_in_its_own_signature(shell, original):
    done = shell("-m", "sweeps", "rerun", str(original), f"{LR}=0.03")
    (again,) = reruns(shell)
    record = json.loads((again / "run.json").read_text())
    assert again.name == f"lr-0.03-max_steps-3-{record['signature'][:6]}-rerun-1"
    assert record["name"] == again.name
    assert f"new run: {again.relative_to(shell.cwd)}\n" in done.stderr
    assert done.stderr.splitlines()[-1].split()[:2] == [again.name, "completed"]


def test_composes_from_the_config_directory_and_the_config_that_were_saved(shell, toy):
    (shell.cwd / "mine" / "optimizer").mkdir(parents=True)
    (shell.cwd / "mine" / "optimizer" / "my.yaml").write_text(
        "optimizer_params: {name: my, lr: 5}\n"
    )
    shell("launch", "--config-dir", "mine", *toy, "optimizer=my", "+extra=1")
    original = next((shell.cwd / "outputs").rglob("run.json")).parent
    shell("-m", "sweeps", "rerun", str(original), "extra=2")
    (again,) = reruns(shell)
    config = yaml.safe_load((again / ".hydra" / "config.yaml").read_text())
    assert config["optimizer"]["optimizer_params"] == {"name": "my", "lr": 5}
    assert config["extra"] == 2


def test_a_run_of_a_sweep_trains_again_to_the_same_bits(shell):
    """The real trainer: its loss curve and its thread count are those of the original."""
    short = [
        "training.training_params.max_steps=3",
        "training.training_params.val_tokens_processed=4096",
    ]
    shell(
        "launch", "sweep=quickstart", *short, "optimizer=muon", "optimizer.optimizer_params.lr=0.03"
    )
    original = next((shell.cwd / "multirun").rglob("run.json")).parent
    done = shell("-m", "sweeps", "rerun", str(original), "--verify")
    assert done.stdout.startswith("equal to the bit: ")
    (again,) = reruns(shell)
    assert json.loads((again / "run.json").read_text())["attempts"][0]["threads"] == 1


def rewrite(original, **changes):
    """Change what run.json records."""
    path = original / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_promise_04_what_differs_from_the_saved_run_is_shown_before_it_starts(shell, toy):
    """Config, code and environment, of a run of a sweep: its frozen code is compared."""
    shell("launch", "-m", *toy, "paths.sweep=s", f"{LR}=0.02")
    original = next((shell.cwd / "multirun").rglob("run.json")).parent
    same = shell("-m", "sweeps", "rerun", str(original))
    assert same.stderr.startswith("config: as it was\ncode: as it was\nenvironment: as it was\n")
    frozen = next((shell.cwd / "multirun/s/.sweep/code").iterdir())
    (frozen / "launch.py").write_text("# another\n")
    (frozen / "gone.py").write_text("")
    (frozen / "sweeps" / "planning" / "plan.py").unlink()
    record = json.loads((original / "run.json").read_text())
    attempt = {**record["attempts"][0], "gpus": ["NVIDIA H200"], "cpu": "Abacus", "threads": 9999}
    packages = {**record["packages"], "torch": "0.1"}
    rewrite(original, packages=packages, python="3.9.1", attempts=[attempt])
    done = shell("-m", "sweeps", "rerun", str(original), f"{LR}=0.03")
    said, _, run = done.stderr.partition("new run: ")
    assert run
    assert f"config:\n  {LR}: 0.02 → 0.03\n" in said
    assert f"code:\n  3 files since {frozen.name}: gone.py (removed), " in said
    assert "launch.py (changed), sweeps/planning/plan.py (added)\n" in said
    assert "  python: 3.9.1 → " in said
    assert f"  torch: 0.1 → {record['packages']['torch']}\n" in said
    assert "  gpus: ['NVIDIA H200'] → " in said
    assert "  cpu: Abacus → " in said
    assert "  threads: 9999 as before, on only " in said


def test_the_code_of_a_single_run_is_compared_by_git(shell, original):
    rewrite(original, git={"sha": "0" * 40, "dirty": True, "diff_sha256": "x"})
    said = shell("-m", "sweeps", "rerun", str(original)).stderr
    assert "  commit 0000000000 → " in said
    assert ": unknown to this git\n" in said
    assert "  it had uncommitted changes, which are not on record\n" in said


def test_a_run_that_repeats_with_less_than_the_tolerance_between_is_equal(shell, original):
    close = (f"{LR}=0.0200001", "--verify")
    done = shell("-m", "sweeps", "rerun", str(original), *close)
    assert done.stdout == (
        "equal to tolerance 1e-05 "
        "(largest relative difference 2.8e-07 at train step 3 loss): 3 values\n"
    )
    shell("-m", "sweeps", "rerun", str(original), *close, "--rtol", "1e-9", code=1)


def test_two_runs_are_compared_by_a_command_of_its_own(shell, original):
    done = shell("-m", "sweeps", "rerun", str(original), "--verify", "--json")
    found = json.loads(done.stdout)
    assert found["comparison"]["verdict"] == "equal to the bit"
    assert (found["state"], found["config"], found["environment"]) == ("completed", [], [])
    done = shell("-m", "sweeps", "compare", str(original), found["directory"])
    assert done.stdout == "equal to the bit: 3 values\n"


def test_a_diverged_run_is_compared_up_to_its_end(shell, toy):
    shell("launch", *toy, "seed=904", code=1)
    original = next((shell.cwd / "outputs").rglob("run.json")).parent
    done = shell("-m", "sweeps", "rerun", str(original), "--verify")
    assert done.stdout == "equal to the bit: 3 values\n"


@pytest.mark.parametrize("text", [f"{LR}=0.1,0.2", f"{LR}=choice(0.1,0.2)"])
def test_a_sweep_is_refused_in_words(shell, original, text):
    done = shell("-m", "sweeps", "rerun", str(original), text, code=2)
    assert done.stderr == f"error: {text} is a sweep; a rerun repeats one run, give one value\n"
    assert reruns(shell) == []


def test_where_the_saved_run_went_is_not_asked_for_again(shell, original):
    done = shell("-m", "sweeps", "rerun", str(original), "hydra.run.dir=x", code=2)
    assert done.stderr == "error: hydra.run.dir=x has no effect on a rerun; leave it out\n"


def test_a_config_group_that_is_gone_is_named(shell, original):
    path = original / ".hydra" / "overrides.yaml"
    path.write_text(yaml.safe_dump(["optimizer=adamx", *yaml.safe_load(path.read_text())]))
    done = shell("-m", "sweeps", "rerun", str(original), code=2)
    assert done.stderr.startswith(
        f"error: {original} does not compose any more: unknown option adamx in optimizer; "
    )
    assert done.stderr.endswith("; did you mean adam?\n")


def test_promise_04_a_directory_that_hydra_alone_wrote_is_rerun_too(shell, original):
    """Hydra's own files, without run.json; the difference is from config.yaml, resolved."""
    plain = shell.cwd / "theirs" / "0"
    shutil.copytree(original / ".hydra", plain / ".hydra")
    config = plain / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("0.02", "0.5"))
    refused = shell("-m", "sweeps", "rerun", str(plain), "--verify", code=2)
    assert "holds no values; there is nothing to compare" in refused.stderr
    said = shell("-m", "sweeps", "rerun", str(plain)).stderr
    assert f"config:\n  {LR}: 0.5 → 0.02\ncode:\n  not on record\n" in said


CALLBACK = """
import os

from hydra.experimental.callback import Callback as Base

def note(word):
    with open("callbacks.txt", "a") as file:
        print(word, os.environ.get('MINE'), file=file)

class Callback(Base):
    def on_run_start(self, config, **more): note("on_run_start")
    def on_run_end(self, config, **more): note("on_run_end")
    def on_job_start(self, config, **more): note("on_job_start")
    def on_job_end(self, config, job_return, **more): note("on_job_end")
"""


def test_promise_04_callbacks_and_environment_of_the_saved_run_are_honoured(shell, toy):
    (shell.cwd / "mine.py").write_text(CALLBACK)
    settings = [
        "+hydra.callbacks.mine._target_=mine.Callback",
        "+hydra.job.env_set.MINE='7'",
    ]
    shell("launch", *toy, *settings)
    log = shell.cwd / "callbacks.txt"
    once = log.read_text()
    words = [line.split()[0] for line in once.splitlines()]
    assert words == ["on_run_start", "on_job_start", "on_job_end", "on_run_end"]
    assert "on_job_start 7" in once
    original = next((shell.cwd / "outputs").rglob("run.json")).parent
    shell("-m", "sweeps", "rerun", str(original))
    assert log.read_text() == once * 2


@pytest.mark.parametrize(
    "words",
    [
        ("DIR", "--verify", "--cluster", "seed=1", "lr=2"),
        ("--cluster", "DIR", "seed=1", "--verify", "lr=2"),
        ("--verify", "--cluster", "DIR", "seed=1", "lr=2"),
    ],
)
def test_overrides_may_stand_anywhere_among_the_options(monkeypatch, words):
    asked = []
    monkeypatch.setattr(rerun, "rerun", lambda *said: asked.append(said) or 0)
    assert main(["rerun", *words]) == 0
    how = rerun.How(verify=True, on_cluster=True)
    assert asked == [(Path("DIR"), ["seed=1", "lr=2"], how)]


def test_a_run_of_this_machine_is_not_sent_to_a_cluster_that_it_does_not_name(shell, original):
    done = shell("-m", "sweeps", "rerun", str(original), "--cluster", code=2)
    assert done.stderr.splitlines()[-1] == (
        "error: --cluster: the run's config names no cluster; add cluster=slurm"
    )
    assert not (shell.cwd / "multirun").exists()
