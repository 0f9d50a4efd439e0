"""What SLURM knows: one squeue and at most one sacct call per question, never one per run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rundir import ClusterError, State

TIMEOUT_S = 60
"""Seconds that a SLURM command may take; a stuck controller must not hang the user's shell."""

_STATES = {
    "CANCELLED": State.CANCELLED,
    "DEADLINE": State.TIMEOUT,
    "FAILED": State.FAILED,
    "NODE_FAIL": State.NODE_FAIL,
    "BOOT_FAIL": State.NODE_FAIL,
    "OUT_OF_MEMORY": State.OUT_OF_MEMORY,
    "PREEMPTED": State.PREEMPTED,
    "TIMEOUT": State.TIMEOUT,
}


class Unanswered(ClusterError):
    """SLURM gave no answer: what was asked of it may have happened all the same."""


@dataclass(frozen=True)
class Element:
    """An array element or job as squeue shows it."""

    state: str
    reason: str


def available() -> bool:
    """Say whether this machine has SLURM's commands."""
    return shutil.which("squeue") is not None


def queue() -> dict[str, Element] | None:
    """Return the user's queued and running elements by id, e.g. ``1234_5``; None without SLURM.

    Raises:
        ClusterError: SLURM is there and does not answer.
    """
    if not available():
        return None
    text = _run("squeue", "--noheader", "--array", "--me", "--format=%F|%K|%T|%r")
    found = {}
    for line in text.splitlines():
        job, index, state, reason = line.split("|", 3)
        found[f"{job}_{index}" if index.isdecimal() else job] = Element(state, reason)
    return found


def find_submission(name: str) -> str | None:
    """Return the id of the job of this name, queued or ended; None if there is none."""
    text = _run("squeue", "--noheader", "--me", f"--name={name}", "--format=%F")
    if not text.strip():
        try:
            text = _run(
                "sacct", "--noheader", "--parsable2", "-X", f"--name={name}", "--format=JobID"
            )
        except ClusterError:  # accounting is off
            return None
    match = re.match(r"\d+", text.strip())
    return match[0] if match else None


def endings(jobs: Collection[str]) -> dict[str, tuple[State, str]]:
    """Return how elements that left the queue ended, by id; empty where accounting is off."""
    arrays = sorted({job.partition("_")[0] for job in jobs})
    if not arrays:
        return {}
    fields = "--format=JobID,State,ExitCode,NodeList"
    try:
        text = _run(
            "sacct", "--noheader", "--parsable2", "-X", f"--jobs={','.join(arrays)}", fields
        )
    except ClusterError:
        return {}
    found = {}
    for line in text.splitlines():
        job, state, code, node = line.split("|")[:4]
        word = state.split()[0] if state else ""
        if job in jobs and word in _STATES:
            found[job] = (
                _STATES[word],
                f"SLURM says {state} (exit code {code}) on {node or 'no node'}",
            )
    return found


def max_array_size() -> int:
    """Return the cluster's MaxArraySize: the largest array index is one less."""
    match = re.search(
        r"^MaxArraySize\s*=\s*(\d+)", _run("scontrol", "show", "config"), re.MULTILINE
    )
    return int(match[1]) if match else 1001


def cancel(jobs: Collection[str]) -> None:
    """Cancel jobs or elements."""
    if jobs:
        _run("scancel", *sorted(jobs))


def require() -> None:
    """Refuse to go on where jobs can't be submitted.

    Raises:
        ClusterError: a command that submission needs is not on the PATH.
    """
    missing = [
        name for name in ("sbatch", "squeue", "srun", "scontrol") if shutil.which(name) is None
    ]
    if missing:
        raise ClusterError(
            f"cluster=slurm needs {', '.join(missing)}, not on this machine's PATH; "
            "run on a login node, or use cluster=local; nothing was submitted"
        )


@contextmanager
def clean_environment() -> Iterator[None]:
    """Hide the login shell's SLURM_* and SBATCH_* variables, except SLURM_CONF, for a while.

    Launched from inside an allocation they would pass its CPU binding and sizes on to every job.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if re.match(r"S(LURM|BATCH|RUN)_", name) and name != "SLURM_CONF"
    }
    for name in inherited:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(inherited)


def _run(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
    except FileNotFoundError:
        raise ClusterError(f"{command[0]} is not on this machine's PATH") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{command[0]} did not answer within {TIMEOUT_S} s") from None
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise ClusterError(f"{command[0]} said: {said}")
    return done.stdout
