"""How leader and follower find each other, and what a stranger on the port can do to them."""

import json
import os
import signal
import socket
import threading
import time

import pytest

from sweeps.records.ledger import SLURM, Share, Submission
from sweeps.workers import follower
from sweeps.workers.follower import Follower
from sweeps.workers.leader import Leader
from sweeps.workers.ranks import Line, Task
from sweeps.workers.signals import STOP_SIGNALS


@pytest.fixture(autouse=True)
def _signals():
    """Put pytest's signal handlers back."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def leader(tmp_path):
    leader = Leader(Task(0, 2, 0, 1, "n"), tmp_path / "0.0.json")
    yield leader
    leader.dismiss()


def address(leader: Leader) -> dict:
    return json.loads(leader.path.read_text())


def connect(leader: Leader) -> socket.socket:
    return socket.create_connection(("127.0.0.1", address(leader)["port"]), timeout=20)


@pytest.mark.parametrize(
    "line",
    [
        b"[1]\n",
        b'"secret"\n',
        b"null\n",
        b"{\n",
        b"\xff\n",
        b"[" * 100_000 + b"\n",
        '{"secret": "é"}\n'.encode(),
        b'{"secret": 1}\n',
        b"x" * 3_000_000,
    ],
    ids=lambda line: line[:8].decode(errors="replace"),
)
def test_a_stranger_on_the_leaders_port_is_turned_away(leader, line):
    with connect(leader) as stranger:
        sender = threading.Thread(target=_send, args=(stranger, line))
        sender.start()
        leader._hear(10)
        sender.join()
    with connect(leader) as ours:
        Line(ours).send(secret=address(leader)["secret"], rank=1, node="n")
        Line(ours).send(ready=True)
        leader.gather(lambda: False)
    assert [fellow.rank for fellow in leader._fellows] == [1]


def _send(to: socket.socket, line: bytes) -> None:
    try:
        to.sendall(line)
    except OSError:  # turned away in the middle of it
        return


def test_bytes_that_come_slowly_do_not_prolong_the_wait_for_a_message():
    server = socket.create_server(("127.0.0.1", 0))
    with server, socket.create_connection(server.getsockname()) as there, server.accept()[0] as us:
        line, is_over = Line(us), threading.Event()

        def drip() -> None:
            while not is_over.wait(0.05):
                there.send(b"x")

        dripping = threading.Thread(target=drip)
        dripping.start()
        began = time.monotonic()
        assert line.receive(0.3) is None
        is_over.set()
        dripping.join()
        assert time.monotonic() - began < 2


def late(make_sweep, path) -> Follower:
    sweep = make_sweep(runs=1)
    submission = Submission("abc", Share(SLURM, ((0, 1),), 1, drain=True, threads=1), "c", "/")
    return Follower(sweep.plan, submission, Task(1, 2, 1, 1, "n"), path)


def test_a_follower_that_comes_after_its_leader_has_ended_leaves_too(make_sweep, leader):
    leader.dismiss()
    assert late(make_sweep, leader.path).work() == 0


def test_a_follower_told_to_stop_before_its_leader_is_there_leaves(make_sweep, tmp_path):
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR2))
    timer.start()
    assert late(make_sweep, tmp_path / "absent.json").work() == 0
    timer.join()


def test_a_follower_waits_for_its_leader_only_so_long(make_sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(follower, "PATIENCE_S", 0.2)
    assert late(make_sweep, tmp_path / "absent.json").work() == 1
