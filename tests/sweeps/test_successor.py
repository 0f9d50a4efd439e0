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
    (tmp_path / "shared.yaml").write_text("b: 1\n")
    (tmp_path / "mine" / "sweep" / "link.yaml").symlink_to("../../shared.yaml")
    (tmp_path / "mine" / "multirun").mkdir()
    (tmp_path / "mine" / "multirun" / "result").write_text("")
    copy = successor._freeze_definitions(given, tmp_path / "home")
    words = successor._with_frozen_definitions([*given, "sweep=two"], copy)
    assert words == [*([f"--config-dir={copy}"] if joined else [given[0], str(copy)]), "sweep=two"]
    (tmp_path / "mine" / "sweep" / "two.yaml").write_text("a: 2\n")
    (tmp_path / "shared.yaml").write_text("b: 2\n")
    assert (copy / "sweep" / "two.yaml").read_text() == "a: 1\n"
    assert (copy / "sweep" / "link.yaml").read_text() == "b: 1\n"
    assert not (copy / "multirun").exists()
    assert successor._freeze_definitions(given, tmp_path / "home") != copy


def test_the_second_stage_is_launched_from_the_definitions_that_were_copied(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "two.yaml").write_text("a: 1\n")
    store = successor.store

    def edit_and_store(found, folder):
        (tmp_path / "mine" / "two.yaml").write_text("a: 2\n")
        return store(found, folder)

    monkeypatch.setattr(successor, "store", edit_and_store)
    copy = successor._freeze_definitions(["--config-dir", "mine"], tmp_path / "home")
    assert (copy / "two.yaml").read_text() == "a: 2\n"
    monkeypatch.setattr(successor.sys, "argv", ["launch.py", "--config-dir", "mine"])
    assert f"--config-dir {copy}" in successor._command(tmp_path, "code", copy)


def test_the_dry_run_of_a_second_stage_names_the_copy_of_its_definitions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "two.yaml").write_text("a: 1\n")
    given = ["--config-dir", "mine"]
    copy = successor._freeze_definitions(given, tmp_path / "home")
    assert copy.name == successor.content_hash(successor._definitions(given))


@pytest.mark.parametrize(("memory", "asked"), [(None, None), (0, 4), (1, 1), (64, 4)])
def test_the_small_job_asks_for_little_memory(memory, asked):
    assert successor._small({"mem_gb": memory}, ["7"]).mem_gb == asked
