"""A run that the kernel kills because its control group has no memory left."""

import os
from pathlib import Path

import pytest

MEMORY = Path("/sys/fs/cgroup/memory")
"""The version 1 hierarchy, in which root may limit a group of processes."""

LIMIT = 512 << 20

TASK = """
def run(config, run):
    run.log("train", 1, loss=1.0)
    if config["seed"] == 1:
        held = bytearray(2 << 30)
        held[:: 4096] = b"x" * len(held[:: 4096])
"""


@pytest.fixture
def little_memory():
    """Yield a function that puts the calling process into a group of little memory."""
    if not os.access(MEMORY, os.W_OK):
        pytest.skip(f"only root may limit memory, and only where {MEMORY} is mounted")
    group = MEMORY / f"optsweep-test-{os.getpid()}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(LIMIT))
    yield lambda: (group / "cgroup.procs").write_text(str(os.getpid()))
    group.rmdir()


def test_a_run_killed_for_its_memory_fails_in_words_and_the_others_complete(shell, little_memory):
    (shell.cwd / "mine.py").write_text(TASK)
    words = ("task=mine.run", "check=null", "seed=1,2", "paths.sweep=s", "cluster.workers=1")
    launch = shell.start("launch", "-m", *words, preexec_fn=little_memory)
    _, said = launch.communicate(timeout=120)
    assert launch.returncode == 1, said
    killed, other = shell.status("s")
    assert other["state"] == "completed"
    assert killed["state"] == "failed"
    assert killed["reason"] == "killed by SIGKILL; often the kernel's out-of-memory killer"
