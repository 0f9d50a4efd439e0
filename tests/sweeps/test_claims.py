import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

from sweeps.records import claims, owners


def _try_to_claim(directory: Path, start, wins) -> None:
    start.wait()
    if claims.claim(directory, "7", 1, owners.myself()):
        wins.put(os.getpid())


def test_of_many_claimers_one_wins_and_the_claim_names_it(tmp_path):
    context = multiprocessing.get_context("spawn")
    start, wins = context.Event(), context.Queue()
    takers = [context.Process(target=_try_to_claim, args=(tmp_path, start, wins)) for _ in range(6)]
    for taker in takers:
        taker.start()
    start.set()
    for taker in takers:
        taker.join(60)
    winner = wins.get(timeout=10)
    assert wins.empty()
    assert claims.latest(tmp_path, "7").owner.pid == winner
    wins.close()
    wins.join_thread()


def test_the_highest_attempt_is_the_latest_claim(tmp_path):
    for attempt in range(1, 12):
        assert claims.claim(tmp_path, "3", attempt, owners.myself())
    assert claims.latest(tmp_path, "3").attempt == 11
    assert claims.all_latest(tmp_path)["3"].attempt == 11
    assert claims.latest(tmp_path, "33") is None


def test_nothing_is_left_beside_the_claims(tmp_path):
    claims.claim(tmp_path, "1", 1, owners.myself())
    claims.claim(tmp_path, "1", 1, owners.myself())
    assert os.listdir(tmp_path) == ["1.1"]


def test_a_claim_whose_answer_nfs_has_lost_is_known_as_ours(tmp_path, monkeypatch):
    """The client repeats the request and is told that the file exists: it is the one it made."""
    link = os.link

    def repeated(source, target):
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", repeated)
    assert claims.claim(tmp_path, "1", 1, owners.myself())
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert not claims.claim(tmp_path, "1", 1, owners.myself())
    assert os.listdir(tmp_path) == ["1.1"]


def test_an_owner_is_alive_until_its_process_ends():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = owners.named(process.pid)
    assert owner.is_alive(None)
    process.kill()
    process.wait()
    process.stdin.close()
    assert not owner.is_alive(None)


def test_a_reused_pid_is_not_the_old_process():
    me = owners.myself()
    assert not owners.Owner(me.host, me.boot, me.pid, me.started + 1).is_alive(None)
    assert not owners.Owner(me.host, "another boot", me.pid, me.started).is_alive(None)


def test_a_process_of_this_boot_is_known_by_any_host_name():
    me = owners.myself()
    assert owners.Owner("old name", me.boot, me.pid, me.started).is_alive(None)
    assert not owners.Owner("old name", me.boot, me.pid, me.started + 1).is_alive(None)


def test_colleagues_can_read_a_claim(tmp_path):
    claims.claim(tmp_path, "1", 1, owners.myself())
    assert (tmp_path / "1.1").stat().st_mode & 0o444 == 0o444


def test_on_another_host_the_queue_decides():
    there = owners.Owner("elsewhere", "boot", 1, 1, job="12_3")
    assert there.is_alive({"12_3"})
    assert not there.is_alive({"12_4"})
    assert there.is_alive(None), "without a scheduler to ask nobody may take the run over"
