import json

import pytest
import yaml


@pytest.fixture
def original(shell, toy):
    shell("launch", *toy, "optimizer.optimizer_params.lr=0.02")
    return next((shell.cwd / "outputs").rglob("run.json")).parent


def reruns(shell):
    return sorted(
        p.parent for p in (shell.cwd / "outputs").rglob("run.json") if "-rerun-" in str(p)
    )


def test_repeats_a_run_into_a_directory_of_its_own_and_says_of_which(shell, original):
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
    assert done.stdout == "different at train step 1: loss 1.02 → 1.03\n"


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
