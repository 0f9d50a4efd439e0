"""Hydra's own tests of launchers, passed by the one for this machine."""

import json
import re
from pathlib import Path

import pytest
import yaml
from hydra import version
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.test_utils.launcher_common_tests import IntegrationTestSuite, LauncherTestSuite

LAUNCHER = "optsweep_local"


@pytest.fixture(autouse=True)
def _project_on_the_path(monkeypatch):
    """Hydra's scripts lie elsewhere and find our plugins only on the path."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))


@pytest.fixture(autouse=True)
def _no_version_base(monkeypatch):
    """What a test before this one left would decide in which directory Hydra's jobs run."""
    monkeypatch.setattr(version.VersionBase.instance(), "version_base", version._UNSPECIFIED_)


def test_hydra_finds_the_launchers():
    found = {f"{kind.__module__}.{kind.__name__}" for kind in Plugins.instance().discover(Launcher)}
    assert {"hydra_plugins.optsweep.LocalLauncher", "hydra_plugins.optsweep.SlurmLauncher"} <= found


@pytest.mark.parametrize(
    ("launcher_name", "overrides"), [(LAUNCHER, ["hydra.launcher.timeout_min=5"])]
)
class TestLocalLauncher(LauncherTestSuite):
    pass


@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"), [({}, ["-m", f"hydra/launcher={LAUNCHER}"])]
)
class TestLocalLauncherIntegration(IntegrationTestSuite):
    pass


BASIC = ("launch", "-m", "hydra/sweeper=basic")


def test_under_hydras_own_sweeper_the_launcher_waits_for_every_job(shell, toy):
    shell(*BASIC, *toy, "seed=1,2")
    states = [
        json.loads(p.read_text())["state"] for p in shell.cwd.glob("outputs/*/*/*/*/status.json")
    ]
    assert states == ["completed", "completed"]


def test_under_hydras_own_sweeper_a_failed_job_fails_the_launch_in_one_line(shell, toy):
    done = shell(*BASIC, *toy, "seed=1,903", code=1)
    assert "Traceback" not in done.stderr
    assert "overrides" not in done.stderr
    assert re.fullmatch(
        r"error: seed-903-max_steps-3-\w{6} failed: RuntimeError: the task is broken; "
        r"see outputs/\S+/train\.log",
        done.stderr.splitlines()[-1],
    )


def test_a_job_returns_its_last_loss_to_a_sampler(shell, toy):
    shell("-c", SAMPLER, "hydra/sweeper=basic", *toy, "optimizer.optimizer_params.lr=0.5,0.25")
    assert json.loads((shell.cwd / "said.json").read_text()) == [1 / 3 + 0.5, 1 / 3 + 0.25]


def test_optuna_is_told_the_true_losses_and_finds_the_best(shell, toy):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs Python 3.11 or newer")
    rate = "optimizer.optimizer_params.lr"
    words = ("hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2", f"{rate}=interval(0.1,0.9)")
    shell("launch", "-m", "hydra/sweeper=optuna", *toy, *words)
    runs = [json.loads(path.read_text()) for path in shell.find("run.json")]
    rates = [run["config"]["optimizer"]["optimizer_params"]["lr"] for run in runs]
    assert len(rates) == 4
    found = yaml.safe_load(shell.find("optimization_results.yaml")[0].read_text())
    assert found["best_params"] == {rate: min(rates)}
    assert found["best_value"] == pytest.approx(1 / 3 + min(rates))


SAMPLER = """
import json, sys
import launch
from sweeps.cluster.waiting import Waiting

wait = Waiting.launch
def told(self, batch, initial_job_idx):
    results = wait(self, batch, initial_job_idx)
    json.dump([job.return_value for job in results], open("said.json", "w"))
    return results
Waiting.launch = told
sys.argv[0] = "launch.py"
sys.argv.insert(1, "-m")
launch.launch()
"""
"""Launches as launch.py does, and writes down what the launcher returns to the sweeper."""
