"""The job that launches a second stage when the jobs of the first one are over.

It is the user's own command typed again: from the same directory, with the same Python, and with
the code and the definitions as they were when it was typed, frozen in the second stage's own
directory. Launching submits only what is missing, so that neither a second such job nor one that is
killed does any harm.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from hydra._internal.utils import get_args

from rundir import UserError, read_json, write_json
from rundir.files import MULTIRUN, OUTPUTS, SWEEP_DIR
from sweeps.cluster import sbatch, scheduler
from sweeps.cluster.clusters import SlurmCluster, cluster
from sweeps.cluster.launchers import SlurmLauncher
from sweeps.define.definition import bare
from sweeps.follow import display
from sweeps.follow.successors import WAITING_FILE
from sweeps.launch.stages import Unfinished
from sweeps.planning.plan import SUCCESSOR_DIR
from sweeps.records import ledger, provenance
from sweeps.records.codefiles import walked
from sweeps.records.freeze import CODE_DIR, content_hash, freeze, present_hash, store
from sweeps.records.sources import Sources

CONFIG_DIR = "config"
"""Holds the copies of ``--config-dir``, each named by its content."""

MEMORY_GB = 4
"""Enough to plan 10,000 runs several times over."""


def submit(
    waiting: Unfinished, root: Path, node: Mapping[str, Any], tasks: Iterable[str] = ()
) -> None:
    """Submit the job, unless it waits already, and say what it waits for.

    One that waits for other jobs than those at work, or for an earlier command or state of the
    code, is replaced.

    Args:
        waiting: what keeps the second stage from being launched.
        root: the second stage's directory.
        node: the ``cluster`` node of this launch.
        tasks: dotted names of the functions that its runs call.

    Raises:
        UserError: an impossible ``cluster`` node, or another launch under way.
        ClusterError: with sbatch's words.
    """
    SlurmLauncher.require(root)
    small, name, folder = _small(node, waiting.jobs), _name(waiting), _folder(root)
    with ledger.locked(root / SWEEP_DIR, waiting.name):
        queued = _queued(name)
        folder.mkdir(parents=True, exist_ok=True)
        code = freeze(root / SWEEP_DIR, names=sorted(tasks), tell=display.warn)
        command = _command(root, code, _freeze_definitions(sys.argv[1:], folder))
        record = read_json(folder / WAITING_FILE) or {}
        job = str(record.get("job"))
        is_there = queued.get(job) == set(waiting.jobs) and record.get("command") == command
        if not is_there:
            job = sbatch.submit(sbatch.slurm_executor(small, folder, name), command)
            first = {"after": waiting.after.sweep, "jobs": waiting.jobs}
            write_json(folder / WAITING_FILE, {"job": job, "command": command, **first})
            display.err.print(
                f"submitted job {job}; its log: {folder}/{job}_0_log.out", markup=False
            )
        scheduler.cancel(queued.keys() - {job})
    again = "still waits" if is_there else "waits"
    display.err.print(
        f"sweep {waiting.name} {again} for {waiting.after.sweep} (job {', '.join(waiting.jobs)}): "
        f"job {job} launches it then; nothing needs this shell",
        markup=False,
    )


def script(
    waiting: Unfinished, root: Path, node: Mapping[str, Any], tasks: Iterable[str] = ()
) -> str:
    """Return the sbatch script that :func:`submit` would have; write nothing."""
    SlurmLauncher.require(root)
    executor = sbatch.slurm_executor(_small(node, waiting.jobs), _folder(root), _name(waiting))
    code = present_hash(root / SWEEP_DIR, names=sorted(tasks))
    found = _definitions(sys.argv[1:])
    copy = _folder(root) / CONFIG_DIR / content_hash(found) if found else None
    return sbatch.script_of(executor, _command(root, code, copy), "dry_run")


def _name(waiting: Unfinished) -> str:
    return f"{waiting.name}.{SUCCESSOR_DIR}"


def _folder(root: Path) -> Path:
    return (root / SWEEP_DIR / SUCCESSOR_DIR).absolute()


def _queued(name: str) -> dict[str, set[str]]:
    """Return the jobs of this name that wait, and what each of them waits for.

    This process may itself be in such a job; it does not wait any more.
    """
    asked = ("--me", f"--name={name}", "--states=PENDING", "--format=%A %E")
    found = {}
    for line in scheduler.ask("squeue", "--noheader", *asked).splitlines():
        job, _, dependency = line.partition(" ")
        if job != os.environ.get("SLURM_JOB_ID"):
            found[job] = set(re.findall(r"(?:^|[:,])(\d+)", dependency))
    return found


def _small(node: Mapping[str, Any], jobs: Sequence[str]) -> SlurmCluster:
    """Return what one small job after the others asks for, where the sweep asks for its runs."""
    more = {**(node.get("additional_parameters") or {}), "dependency": f"afterany:{':'.join(jobs)}"}
    memory = node.get("mem_gb")
    little = None if memory is None else min(memory or MEMORY_GB, MEMORY_GB)  # 0: a whole node's
    small = {"mem_gb": little, "additional_parameters": more}
    return cast("SlurmCluster", cluster(SlurmCluster, {**node, **_ONE_SMALL_JOB, **small}))


_ONE_SMALL_JOB = {
    "nodes": 1,
    "tasks_per_node": 1,
    "cpus_per_task": 1,
    "workers": None,
    "runs_per_gpu": None,
    "runs_per_node": None,
    **dict.fromkeys(("gpus_per_node", "gpus_per_task", "gres", "cpus_per_gpu", "mem_per_gpu")),
}


def _command(root: Path, code: str, definitions: Path | None) -> str:
    """Return the shell command that repeats this launch, for good, from frozen code.

    Args:
        root: the second stage's directory.
        code: hash of the frozen code.
        definitions: the copy of the directory of ``--config-dir``.
    """
    program = (root / SWEEP_DIR).absolute() / CODE_DIR / code / "launch.py"
    given = [word for word in sys.argv[1:] if not bare(word).startswith("dry_run=")]
    settings = []
    git = provenance.git_state()
    if git is not None:
        settings = [f"{provenance.GIT_VARIABLE}={json.dumps(git)}"]
    words = ["env", "-C", str(Path.cwd()), *settings, sys.executable, "-u", str(program)]
    return shlex.join([*words, *_with_frozen_definitions(given, definitions)])


def _definitions(arguments: Sequence[str]) -> Sources | None:
    """Return the files of the directory of ``--config-dir``; None without it."""
    given = get_args(list(arguments)).config_dir
    if given is None:
        return None
    source = Path(given).absolute()
    if not source.is_dir():
        raise UserError(f"--config-dir {given}; must be a directory")
    found = Sources(source)
    found.add(source, walked(source, _NO_DEFINITIONS))
    return found


_NO_DEFINITIONS = frozenset({".git", ".venv", "__pycache__", MULTIRUN, OUTPUTS, SWEEP_DIR})


def _freeze_definitions(arguments: Sequence[str], folder: Path) -> Path | None:
    """Copy the directory of ``--config-dir``, and return the copy."""
    found = _definitions(arguments)
    if found is None:
        return None
    copy = store(found, folder / CONFIG_DIR)
    for line in found.unfrozen:
        display.warn(line)
    return copy


def _with_frozen_definitions(arguments: Sequence[str], copy: Path | None) -> list[str]:
    """Return the arguments with the directory of ``--config-dir`` replaced by its copy."""
    if copy is None:
        return list(arguments)
    changed: list[str] = []
    for word in arguments:
        flag, equals, _ = word.partition("=")
        is_value = bool(changed) and changed[-1] in _CONFIG_DIR
        joined = flag in _CONFIG_DIR and equals
        changed.append(f"{flag}={copy}" if joined else str(copy) if is_value else word)
    return changed


_CONFIG_DIR = ("--config-dir", "-cd")
