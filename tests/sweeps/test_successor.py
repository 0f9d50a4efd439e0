"""The job that launches a second stage, as far as it can be told without SLURM."""

import pytest

from sweeps.cluster import scheduler
from sweeps.launch import successor


@pytest.fixture
def squeue(monkeypatch):
    """Have squeue show two waiting jobs."""
    text = "8 afterany:5_*(unfulfilled),afterany:6_*(unfulfilled)\n9 (null)\n"
    monkeypatch.setattr(
        scheduler, "ask", lambda *words: text if "--states=PENDING" in words else ""
    )
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


def test_a_waiting_job_tells_what_it_waits_for(squeue):
    assert successor._queued("two.successor") == {"8": {"5", "6"}, "9": set()}


def test_a_second_stage_that_is_being_launched_does_not_wait_for_itself(squeue, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert successor._queued("two.successor") == {"9": set()}


@pytest.mark.parametrize("joined", [True, False])
def test_definitions_of_ones_own_are_frozen_too(tmp_path, monkeypatch, joined):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "sweep").mkdir(parents=True)
    (tmp_path / "mine" / "sweep" / "two.yaml").write_text("a: 1\n")
    given = ["--config-dir=mine"] if joined else ["--config-dir", "mine"]
    successor._freeze_definitions(given, tmp_path / "home")
    words = successor._with_frozen_definitions([*given, "sweep=two"], tmp_path / "home")
    assert words[-1] == "sweep=two"
    copy = words[0].partition("=")[2] if joined else words[1]
    (tmp_path / "mine" / "sweep" / "two.yaml").write_text("a: 2\n")
    assert (tmp_path / "home" / copy / "sweep" / "two.yaml").read_text() == "a: 1\n"
    again = successor._with_frozen_definitions([*given, "sweep=two"], tmp_path / "home")
    assert again != words
