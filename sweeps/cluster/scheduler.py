"""What SLURM knows: one squeue and at most one sacct call per question, never one per run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from rundir import ClusterError, State

TIMEOUT_S = 60
"""Seconds that a SLURM command may take; a stuck controller must not hang the user's shell."""

ACCOUNTING_S = 10
"""Seconds that sacct may take to explain an end: a slow database must not hold up a status."""

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


class Unreachable(ClusterError):
    """SLURM was not asked, as it is not on this machine, or has not answered."""


_OVER = frozenset({*_STATES, "COMPLETED", "REVOKED"})
"""States in which squeue still shows an element for a while (MinJobAge, 300 s) after its end."""

_HELD = re.compile("(?i)held|SPECIAL_EXIT|REQUEUE_HOLD")


@dataclass(frozen=True)
class Element:
    """An array element or job as squeue shows it while it is queued or runs."""

    state: str
    """SLURM's own word, e.g. ``PENDING``."""
    reason: str | None = None
    """SLURM's own words, e.g. ``Priority``; None where it gives none."""
    node: str | None = None

    @property
    def why(self) -> str | None:
        """SLURM's words on why the element is where it is; those on hold don't start unasked."""
        word = None if self.state in {"PENDING", "RUNNING"} else self.state
        said = ": ".join(part for part in (word, self.reason) if part)
        if _HELD.search(said):
            return f"{said}; `scontrol release` lets it start"
        return said or None


@dataclass(frozen=True)
class Ending:
    """How an element ended, in SLURM's words."""

    state: State
    reason: str
    node: str | None = None
    at: str = ""
    """When, as ISO local time, so that texts order as times do; empty where SLURM does not say."""


class Queue(dict[str, Element]):
    """What squeue shows: live elements by id, e.g. ``1234_5``, and how others ended lately."""

    def __init__(
        self,
        live: Mapping[str, Element] | None = None,
        endings: Mapping[str, Ending] | None = None,
        jobs: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(live or {})
        self.endings = dict(endings or {})
        self.jobs = dict(jobs or {})
        """Ids of the jobs shown, without element, by the jobs' names."""


class UnknownQueue(Queue):
    """Stands for the queue while squeue does not tell: any job may still be in it."""

    def __init__(self, why: str = "squeue does not answer") -> None:
        super().__init__()
        self.why = why

    def __contains__(self, job: object) -> bool:
        return isinstance(job, str) and job[:1].isdecimal()

    def __missing__(self, job: str) -> Element:
        return Element("PENDING", f"{self.why}; it may wait, run or be gone")


def queue(user: int | None = None) -> Queue:
    """Ask squeue once.

    Where it shows no job at all of another user, nothing is known: a site may hide them
    (PrivateData=jobs).

    Args:
        user: id of the user whose jobs to look at; by default whoever asks.

    Raises:
        ClusterError: SLURM does not answer, or is not on this machine.
    """
    me = os.getuid()
    whose = f"--user={me if user is None else user}"
    fields = "--format=%F|%K|%T %e|%N|%r|%j"
    text = ask("squeue", "--noheader", "--array", "--states=all", whose, fields)
    if user not in {None, me} and not text.strip():
        return UnknownQueue("squeue shows no jobs of the user who launched it")
    live, endings, jobs = {}, {}, {}
    for line in text.splitlines():
        job, index, said_state, node, reason, name = line.split("|", 5)
        state, _, at = said_state.partition(" ")
        jobs[name] = job
        element = f"{job}_{index}" if index.isdecimal() else job
        said = None if reason in {"", "None"} else reason
        if state not in _OVER:
            live[element] = Element(state, said, node or None)
        elif state in _STATES:
            endings[element] = _ending(state, said, node, at)
    return Queue(live, endings, jobs)


def _ending(word: str, why: str | None, nodes: str, at: str) -> Ending:
    node = nodes if nodes not in {"", "None assigned", "(null)"} else None
    said = f"SLURM says {word}" + (f" ({why})" if why else "") + f" on {node or 'no node'}"
    is_known = at[:1].isdecimal()  # not of one that was cancelled while it waited
    return Ending(_STATES[word.split(maxsplit=1)[0]], said, node, at if is_known else "")


def jobs_named(names: Collection[str], since: float) -> dict[str, str]:
    """Return the ids of the user's jobs of these names, queued or ended, by name.

    squeue shows ended jobs for a while (MinJobAge, 300 s); of older ones only sacct knows.

    Args:
        names: of the jobs looked for.
        since: Unix time before which none of them was submitted.

    Raises:
        ClusterError: SLURM does not answer.
    """
    text = ask("squeue", "--noheader", "--me", "--states=all", "--format=%F|%j")
    found = _by_name(text, names)
    if len(found) < len(set(names)):
        start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since - 1))
        what = (f"--starttime={start}", "--format=JobID,JobName")
        with suppress(ClusterError):  # accounting is off
            found |= _by_name(ask("sacct", "--noheader", "--parsable2", "-X", *what), names)
    return found


def _by_name(text: str, names: Collection[str]) -> dict[str, str]:
    rows = (line.partition("|")[::2] for line in text.splitlines())
    return {name: job.partition("_")[0] for job, name in rows if name in names}


def endings(jobs: Collection[str]) -> dict[str, Ending]:
    """Ask sacct once how elements that left the queue ended; return what it knows, by id.

    Args:
        jobs: elements, and arrays of which every element is meant.

    Raises:
        ClusterError: accounting is off, or gives no answer within ACCOUNTING_S.
    """
    arrays = sorted({job.partition("_")[0] for job in jobs})
    if not arrays:
        return {}
    fields = "--format=JobID,State,ExitCode,NodeList,End"
    command = ("sacct", "--noheader", "--parsable2", "-X", f"--jobs={','.join(arrays)}", fields)
    found = {}
    for line in ask(*command, seconds=ACCOUNTING_S).splitlines():
        job, state, code, nodes, at = line.split("|")[:5]
        is_asked = job in jobs or job.partition("_")[0] in jobs
        if is_asked and state and state.split()[0] in _STATES:
            found[job] = _ending(state, f"exit code {code}", nodes, at)
    return found


def cancel(jobs: Collection[str]) -> None:
    """Cancel jobs or elements."""
    if jobs:
        ask("scancel", *sorted(jobs))


def require() -> None:
    """Refuse to go on where jobs can't be submitted.

    Raises:
        Unreachable: a command that submission needs is not on the PATH.
    """
    missing = [
        name for name in ("sbatch", "squeue", "srun", "scontrol") if shutil.which(name) is None
    ]
    if missing:
        raise Unreachable(
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


def ask(*command: str, seconds: float = TIMEOUT_S) -> str:
    """Run one of SLURM's commands and return what it prints.

    Raises:
        Unreachable: with its words, when it fails, is not there, or does not answer.
    """
    environment = {**os.environ, "SLURM_TIME_FORMAT": "standard"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
            env=environment,
        )
    except FileNotFoundError:
        raise Unreachable(f"{command[0]} is not on this machine's PATH") from None
    except subprocess.TimeoutExpired:
        raise Unreachable(f"{command[0]} did not answer within {seconds} s") from None
    if done.returncode != 0:
        said = words(command[0], done.stderr) or f"exit code {done.returncode}"
        raise Unreachable(f"{command[0]} said: {said}")
    return done.stdout


def words(command: str, stderr: str) -> str:
    """Return what a command has said in one line, without its own name before every part."""
    prefix = re.compile(rf"{re.escape(command)}: (?:error: )?")
    lines = (prefix.sub("", " ".join(line.split()), count=1) for line in stderr.splitlines())
    return "; ".join(line for line in lines if line)
