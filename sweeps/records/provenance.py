"""Where a result came from: commit, uncommitted changes, package versions, machine."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

PROJECT_ROOT = Path(__file__).resolve().parents[2]
"""Directory that holds launch.py and conf/; in a job, its frozen copy."""

GIT_VARIABLE = "OPTSWEEP_GIT"
"""Environment variable that holds, for a launch from a frozen copy, the state it was copied in."""

_PACKAGES = ("hydra-core", "numpy", "omegaconf", "submitit", "torch", "triton")


@lru_cache(maxsize=1)
def packages() -> dict[str, str]:
    """Return the versions of the packages that a result depends on."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@lru_cache(maxsize=1)
def git_state() -> dict[str, Any] | None:
    """Return the commit and a hash of uncommitted changes; None outside git."""
    recorded = os.environ.get(GIT_VARIABLE)
    if recorded:
        found: dict[str, Any] = json.loads(recorded)
        return found
    sha = _git("rev-parse", "HEAD")
    if sha is None:
        return None
    changes = (_git("diff", "HEAD") or b"") + (_git("status", "--porcelain") or b"")
    return {
        "sha": sha.decode().strip(),
        "dirty": bool(changes),
        "diff_sha256": hashlib.sha256(changes).hexdigest() if changes else None,
    }


def changed_since(sha: str) -> list[str] | None:
    """Return the tracked files that differ from a commit; None where git does not know it."""
    listed = _git("diff", "--name-only", "-z", sha)
    return None if listed is None else os.fsdecode(listed).split("\0")[:-1]


def _git(*arguments: str) -> bytes | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(PROJECT_ROOT), *arguments],
            capture_output=True,
            check=False,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def gpus() -> list[str]:
    """Return the names of the GPUs that this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "":
        return []
    found = _gpus()
    if visible is None:
        return [name for _, _, name in found]
    names = []
    for wanted in map(str.strip, visible.split(",")):
        fits = [name for index, uuid, name in found if wanted == index or _begins(uuid, wanted)]
        if not fits:  # as CUDA reads it: the list ends at the first id that is none
            break
        names.append(fits[0])
    return names


@lru_cache(maxsize=1)
def _gpus() -> list[tuple[str, str, str]]:
    """Return index, UUID and name of this machine's GPUs; a second, but once for all forks."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index,uuid,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if done.returncode:
        return []
    rows = [line.split(", ", 2) for line in done.stdout.splitlines()]
    return [(row[0], row[1], row[2]) for row in rows if len(row) == 3]


def _begins(uuid: str, wanted: str) -> bool:
    return wanted.startswith("GPU-") and uuid.startswith(wanted)


def slurm_ids() -> dict[str, str]:
    """Return the SLURM variables that identify the job this process runs in."""
    names = ("JOB_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID", "JOB_NODELIST", "RESTART_COUNT", "PROCID")
    return {
        name.lower(): os.environ[f"SLURM_{name}"] for name in names if f"SLURM_{name}" in os.environ
    }


def host() -> dict[str, Any]:
    """Return the machine's name, its processor, and how many cores this process may use."""
    cores = len(os.sched_getaffinity(0))
    return {"host": os.uname().nodename, "cpu": _cpu(), "cores": cores}


@lru_cache(maxsize=1)
def _cpu() -> str | None:
    """Return the processor's model as the kernel names it; None where it does not."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else None
