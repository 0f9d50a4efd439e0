"""Hydra's own tests of launchers, passed by the one for SLURM on a real SLURM."""

import json
from pathlib import Path

import pytest
from hydra import version
from hydra.test_utils.launcher_common_tests import IntegrationTestSuite, LauncherTestSuite

LAUNCHER = "optsweep_slurm"


@pytest.fixture
def _login(slurm, monkeypatch):
    """Be on the login node; Hydra's scripts find our plugins only on the path."""
    for name, value in slurm.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    # What a test before this one left would decide in which directory Hydra's jobs run.
    monkeypatch.setattr(version.VersionBase.instance(), "version_base", version._UNSPECIFIED_)


@pytest.mark.usefixtures("_login")
@pytest.mark.parametrize(
    ("launcher_name", "overrides"), [(LAUNCHER, ["hydra.launcher.timeout_min=10"])]
)
class TestSlurmLauncher(LauncherTestSuite):
    pass


@pytest.mark.usefixtures("_login")
@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"), [({}, ["-m", f"hydra/launcher={LAUNCHER}"])]
)
class TestSlurmLauncherIntegration(IntegrationTestSuite):
    pass


def test_under_hydras_own_sweeper_the_launcher_waits_and_a_failed_job_fails_the_launch(
    shell, slurm, toy
):
    shell.env.update(slurm.env)
    shell.env["SLURM_CPU_BIND"] = "mask_cpu:0x1"
    basic = ("launch", "-m", "hydra/sweeper=basic", "cluster=slurm", "cluster.timeout_min=10")
    shell(*basic, *toy, "seed=1,2")
    ended = shell.cwd.glob("outputs/*/*/*/*/status.json")
    assert [json.loads(path.read_text())["state"] for path in ended] == ["completed"] * 2
    done = shell(*basic, *toy, "seed=3,903", code=1)
    (said,) = done.stderr.splitlines()  # not what submitit warns of where accounting is off
    assert " failed: RuntimeError: the task is broken; see " in said
