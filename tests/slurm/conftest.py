"""Private one-machine SLURM clusters for the tests in this folder, without and with accounting.

In CI none of these tests may be skipped: there a skip is a failure.
"""

from __future__ import annotations

import getpass
import os
import random
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parent


@dataclass(frozen=True)
class Lab:
    """A running SLURM."""

    path: Path
    """Holds etc/slurm.conf and the daemons' logs under log/."""
    env: Mapping[str, str]
    """Environment of a login shell of this cluster: the test's own without the SLURM_* in it."""
    nodes: tuple[str, ...]
    accounting: bool

    def run(
        self,
        *argv: str | Path,
        timeout: float = 60,
        check: bool = True,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the cluster's environment; it must exit 0 unless ``check`` is off.

        Args:
            argv: the command's words.
            timeout: seconds.
            check: whether another exit code fails the test.
            cwd: directory to run in.
            env: variables on top of the cluster's.
        """
        words = [str(word) for word in argv]
        done = subprocess.run(
            words,
            cwd=cwd,
            env={**self.env, **(env or {})},
            timeout=timeout,
            text=True,
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        said = f"{shlex.join(words)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        assert not check or done.returncode == 0, said
        return done

    def wait_idle(self, timeout: float = 60) -> None:
        """Return when no job is queued or running and every node is idle."""
        deadline = time.monotonic() + timeout
        while True:
            queue = self.run("squeue", "--noheader").stdout
            idle = self.run("sinfo", "--noheader", "-N", "-t", "idle", "-o", "%N").stdout.split()
            if not queue and set(idle) == set(self.nodes):
                return
            assert time.monotonic() < deadline, (
                f"after {timeout} s idle are {idle}; queue:\n{queue}"
            )
            time.sleep(0.1)

    def kill_node(self, node: str, *, daemon_only: bool = False) -> None:
        """End a node's slurmd by SIGKILL, with its jobs' processes unless told otherwise."""
        self.run(SCRIPTS / "nodekill.sh", node, "daemon" if daemon_only else "all")

    @contextmanager
    def apart(self, node: str) -> Iterator[Callable[[], None]]:
        """Have a node's processes in a pid namespace of their own, as on another machine.

        Gives what ends its slurmd alone; at the end all its processes are killed. Needs root.
        """
        self.run(SCRIPTS / "nodekill.sh", node, "daemon")
        script = (
            'slurmd -d "$(command -v slurmstepd)" -N "$0"; read -r _; '
            'kill -9 "$(cat "$LAB/run/slurmd.$0.pid")"; exec sleep infinity'
        )
        own = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
        with subprocess.Popen(
            [*own, "bash", "-c", script, node], env=self.env, stdin=subprocess.PIPE, text=True
        ) as space:
            try:
                self.wait_idle()
                yield lambda: print(file=space.stdin, flush=True)
            finally:
                space.kill()


@pytest.fixture(scope="session")
def slurm() -> Iterator[Lab]:
    """SLURM without accounting: sacct has nothing to say."""
    with start_lab(accounting=False) as lab:
        yield lab


@pytest.fixture
def login(shell: Any, slurm: Lab) -> Iterator[Any]:
    """Be on the login node of a cluster without accounting, which is left idle."""
    shell.env.update(slurm.env)
    yield shell
    slurm.run("scancel", "--me", check=False)
    slurm.wait_idle()


@pytest.fixture(scope="session")
def slurm_accounting() -> Iterator[Lab]:
    """SLURM with slurmdbd, so that sacct knows ended jobs."""
    with start_lab(accounting=True) as lab:
        yield lab


@pytest.fixture
def slurm_to_break() -> Iterator[Lab]:
    """SLURM of one test alone, with two nodes and no accounting."""
    with start_lab(accounting=False, node_count=2) as lab:
        yield lab


@pytest.fixture(scope="session")
def slurm_resolving() -> Iterator[Lab]:
    """SLURM of two nodes whose names resolve, as ranks on several nodes need."""
    with start_lab(accounting=False, node_count=2, NODEPREFIX="127.0.1.") as lab:
        yield lab


@pytest.fixture(scope="session")
def slurm_limited() -> Iterator[Lab]:
    """SLURM that enforces the submit limits of two accounts and a QOS; arrays of five at most."""
    enforced = "AccountingStorageEnforce=limits,qos"
    me = getpass.getuser()
    with start_lab(accounting=True, node_count=2, MAXARRAY="5", EXTRA=enforced) as lab:
        for words in (
            "add account research Description=x Organization=x",
            "add account shared Description=x Organization=x",
            "add qos short MaxSubmitJobsPerUser=3",
            f"add user {me} account=research",
            f"add user {me} account=shared",
            f"modify user {me} set DefaultAccount=research qos+=short",
            f"modify user where name={me} account=research set MaxSubmitJobs=7",
            "modify account shared set GrpSubmitJobs=4",
        ):
            lab.run("sacctmgr", "-i", *words.split())
        yield lab


@pytest.fixture
def slurm_forgetful() -> Iterator[Lab]:
    """SLURM of one test alone that forgets ended jobs after 2 s and answers within 2 s or never."""
    more = "MinJobAge=2\nMessageTimeout=2"
    with start_lab(accounting=False, node_count=2, EXTRA=more) as lab:
        yield lab


@pytest.fixture(params=["REQUEUE", "CANCEL"])
def slurm_preempting(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """SLURM of one node where jobs in partition ``high`` preempt those in ``low``, 20 s warned."""
    more = (
        f"PreemptType=preempt/partition_prio\nPreemptMode={request.param}\n"
        "PartitionName=low Nodes=ALL PriorityTier=1 GraceTime=20 MaxTime=INFINITE State=UP\n"
        "PartitionName=high Nodes=ALL PriorityTier=9 PreemptMode=OFF MaxTime=INFINITE State=UP"
    )
    with start_lab(accounting=False, node_count=1, EXTRA=more) as lab:
        yield lab


@contextmanager
def start_lab(*, accounting: bool, node_count: int = 4, **settings: str) -> Iterator[Lab]:
    """Start a SLURM, skip the test where it is not installed, and stop it whatever happens.

    Takes 1 s to start and 0.5 s to stop, with accounting 3 s and 2 s. Where this process is killed,
    the cluster stops by itself a second later.

    Args:
        accounting: whether there is a slurmdbd.
        node_count: number of nodes.
        settings: what up.sh takes besides, e.g. ``MAXARRAY`` or ``EXTRA``.
    """
    installed = subprocess.run(
        [SCRIPTS / "install.sh", "--check"], text=True, capture_output=True, check=False
    )
    if installed.returncode:
        pytest.skip(installed.stderr.strip())
    # pytest's own temporary paths are too long for the daemons' sockets
    path = Path(tempfile.mkdtemp(prefix="optsweep-slurm-", dir="/tmp"))
    base = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    base |= {
        "LAB": str(path),
        "NODES": str(node_count),
        "BASE": str(_free_ports(11 + node_count)),
        "DBD": str(int(accounting)),
        "OWNER": str(os.getpid()),
        **settings,
    }
    try:
        up = subprocess.run(
            [SCRIPTS / "up.sh"], env=base, text=True, capture_output=True, check=False
        )
        if up.returncode:
            pytest.fail(
                f"SLURM did not start: {up.stderr}{_last_lines(path / 'log')}", pytrace=False
            )
        names = tuple(f"{settings.get('NODEPREFIX', 'n')}{i + 1}" for i in range(node_count))
        yield Lab(path, base | _exports(path / "env"), names, accounting)
    finally:
        subprocess.run([SCRIPTS / "down.sh"], env=base, check=False)
        shutil.rmtree(path, ignore_errors=True)


def _exports(path: Path) -> dict[str, str]:
    words = (shlex.split(line) for line in path.read_text().splitlines())
    return dict(word.split("=", 1) for _export, word in words)


def _free_ports(count: int) -> int:
    """Return the first of ``count`` free ports in a row; outgoing connections use higher ones."""
    for _ in range(100):
        first = random.randrange(20000, 32000)
        if all(_is_free(port) for port in range(first, first + count)):
            return first
    pytest.fail("no free range of TCP ports between 20000 and 32000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _last_lines(logs: Path) -> str:
    """Return the last five lines of every daemon's log."""
    return "".join(
        "\n".join([f"\n--- {log.name}", *log.read_text(errors="replace").splitlines()[-5:]])
        for log in sorted(logs.glob("*.log"))
    )
