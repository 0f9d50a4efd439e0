"""Whether a launch is past its input, and what its jobs learn of it."""

import os
import subprocess
from types import SimpleNamespace

import pytest

from sweeps.cluster import sbatch
from sweeps.planning.phase import begin_work, environment_as_found, launching


def test_a_launch_is_at_work_from_when_it_says_so_until_its_own_end():
    begin_work()  # nobody asks
    with launching() as first:
        assert not first.is_at_work
        begin_work()
        assert first.is_at_work
    with launching() as second:
        assert not second.is_at_work


@pytest.fixture(params=[None, "0", "1"])
def found(request, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    if request.param is not None:
        monkeypatch.setenv("HYDRA_FULL_ERROR", request.param)
    return request.param


def test_hydras_switch_is_put_back_for_what_a_launch_starts_and_at_its_end(found):
    with launching() as launch:
        assert launch.in_full == (found == "1")
        assert os.environ["HYDRA_FULL_ERROR"] == "1"
        with environment_as_found():
            assert os.environ.get("HYDRA_FULL_ERROR") == found
        assert os.environ["HYDRA_FULL_ERROR"] == "1"
    assert os.environ.get("HYDRA_FULL_ERROR") == found


def test_a_job_inherits_hydras_switch_as_the_user_had_it(found):
    """Where a second stage's job launches, every error would come with its traceback."""

    def submit(_command):
        seen = subprocess.check_output(["sh", "-c", "echo ${HYDRA_FULL_ERROR-}"], text=True)
        return SimpleNamespace(job_id=seen.strip())

    with launching():
        job = sbatch.submit(SimpleNamespace(_submit_command=submit), "true")
    assert job == (found or "")


def test_a_local_run_inherits_it_too(shell):
    shell.cwd.joinpath("own.py").write_text(
        "import os\ndef run(config, run):\n"
        "    open('seen', 'w').write(str(os.environ.get('HYDRA_FULL_ERROR')))\n"
    )
    shell("launch", "-m", "task=own.run", "check=null", "seed=1")
    assert (shell.cwd / "seen").read_text() == "None"
