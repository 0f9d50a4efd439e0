"""The private SLURM itself behaves as a cluster does where the other tests rely on it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SCRIPTS = Path(__file__).parent


def test_every_element_of_an_array_ends_and_has_its_own_index(slurm, tmp_path):
    slurm.run(
        "sbatch", "--wait", "-a", "0-4", "-o", tmp_path / "%a.out",
        "--wrap", "echo $SLURM_ARRAY_TASK_ID $SLURM_JOB_NODELIST",
    )  # fmt: skip
    outputs = [(tmp_path / f"{i}.out").read_text().split() for i in range(5)]
    assert [words[0] for words in outputs] == list("01234")
    assert {words[1] for words in outputs} <= set(slurm.nodes)


def test_jobs_side_by_side_on_a_node_see_different_gpus(slurm, tmp_path):
    together = f"[ $(ls {tmp_path} | grep -c here) = 4 ]"
    slurm.run(
        "sbatch", "--wait", "-a", "0-3", "--gres=gpu:1", "-w", slurm.nodes[0],
        "-o", tmp_path / "%a.out", "--wrap",
        f"touch {tmp_path}/$SLURM_ARRAY_TASK_ID.here; echo $CUDA_VISIBLE_DEVICES; "
        f"for i in $(seq 100); do {together} && exit; sleep 0.1; done; exit 1",
    )  # fmt: skip
    assert sorted((tmp_path / f"{i}.out").read_text().strip() for i in range(4)) == list("0123")


def test_the_largest_array_index_is_one_below_max_array_size(slurm):
    settings = slurm.run("scontrol", "show", "config").stdout
    assert "MaxArraySize            = 1001" in settings
    refused = slurm.run("sbatch", "-a", "1001", "--wrap", "true", check=False)
    assert "Invalid job array specification" in refused.stderr


def test_sacct_is_refused_without_accounting(slurm):
    answer = slurm.run("sacct", check=False)
    assert answer.returncode == 1
    assert "Slurm accounting storage is disabled" in answer.stderr


def test_sacct_knows_how_a_job_ended(slurm_accounting):
    lab = slurm_accounting
    job = lab.run("sbatch", "--parsable", "-o", "/dev/null", "--wrap", "exit 7").stdout.strip()
    lab.wait_idle()
    assert _eventually(lambda: "FAILED|7:0" in _sacct(lab, job))


def test_a_requeued_job_runs_again_and_knows_it(slurm, tmp_path):
    job = slurm.run(
        "sbatch", "--parsable", "--requeue", "--open-mode=append", "-o", tmp_path / "out",
        "--wrap", "n=${SLURM_RESTART_COUNT:-0}; echo restart $n; [ $n = 1 ] || sleep 60",
    ).stdout.strip()  # fmt: skip
    assert _eventually(lambda: "restart 0" in _text(tmp_path / "out"))
    slurm.run("scontrol", "requeue", job)
    assert _eventually(lambda: "restart 1" in _text(tmp_path / "out"))
    slurm.wait_idle()


def test_a_killed_node_takes_its_jobs_along_and_no_others(slurm_to_break, tmp_path):
    lab, (spared, killed) = slurm_to_break, slurm_to_break.nodes
    seconds = str(31_000_000 + os.getpid())
    lab.run("sbatch", "--no-requeue", "-o", "/dev/null", "-w", killed, "--wrap", f"sleep {seconds}")
    lab.run("sbatch", "-o", tmp_path / "out", "-w", spared, "--wrap", "sleep 2; echo done")
    assert _eventually(lambda: _running("sleep", seconds))
    lab.kill_node(killed)
    lab.run("scontrol", "update", f"NodeName={killed}", "State=DOWN", "Reason=killed")
    assert _eventually(lambda: not _running("sleep", seconds))
    assert _eventually(lambda: _text(tmp_path / "out") == "done\n")


def test_a_lab_goes_down_with_its_jobs_when_its_owner_is_killed():
    seconds = str(41_000_000 + os.getpid())
    code = f"""
import sys, time
sys.path.insert(0, {str(SCRIPTS)!r})
import conftest
with conftest.start_lab(accounting=False, node_count=1) as lab:
    lab.run("sbatch", "-o", "/dev/null", "--wrap", "sleep {seconds}")
    print(lab.path, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        path = Path(owner.stdout.readline().strip())
        assert _eventually(lambda: _running("sleep", seconds))
        owner.kill()
    assert _eventually(lambda: not path.exists())
    assert not _running("sleep", seconds)


def _eventually(holds: Callable[[], object], timeout: float = 20) -> bool:
    deadline = time.monotonic() + timeout
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _sacct(lab, job: str) -> str:
    return lab.run("sacct", "-X", "-n", "-P", "-j", job, "-o", "State,ExitCode").stdout


def _running(*argv: str) -> bool:
    """Tell whether a process with this command line lives; a zombie has none."""
    wanted = "\0".join(argv).encode() + b"\0"
    return any(_bytes(file) == wanted for file in Path("/proc").glob("[0-9]*/cmdline"))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it ended meanwhile
        return b""
