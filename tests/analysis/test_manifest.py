"""The manifest and its lock: damage, versions, and two collectors at once."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from analysis import runs
from analysis.collecting.collector import collect
from analysis.parquet.manifest import StoreError
from rundir import UserError


def test_a_damaged_manifest_is_named_and_mended_by_collecting(run_maker) -> None:
    run_maker("a")
    collect()
    Path("store/manifest.json").write_text('{"version": 1, "gen')
    with pytest.raises(StoreError) as caught:
        runs()
    expected = "store = store; its manifest.json is damaged; run: python -m analysis collect"
    assert str(caught.value) == expected
    assert collect().new == 1
    assert len(runs()) == 1


def test_a_store_of_a_newer_format_is_left_alone(run_maker) -> None:
    run_maker("a")
    collect()
    path = Path("store/manifest.json")
    path.write_text(path.read_text().replace('"version":1', '"version":2', 1))
    before = path.read_bytes()
    with pytest.raises(UserError, match="version = 2; must be 1"):
        collect()
    assert path.read_bytes() == before


def test_a_second_collector_says_who_holds_the_store(run_maker) -> None:
    run_maker("a")
    collect()
    with Path("store/.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError) as caught:
            collect(wait=False)
    holder = f"process {os.getpid()} on {os.uname().nodename}"
    assert str(caught.value) == f"store = store; {holder} is collecting into it"


def test_a_collector_that_may_wait_goes_on_when_the_other_ends(run_maker, capsys) -> None:
    run_maker("a")
    collect()
    with Path("store/.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        threading.Timer(0.3, fcntl.flock, (held, fcntl.LOCK_UN)).start()
        assert collect().unchanged == 1
    holder = f"process {os.getpid()} on {os.uname().nodename}"
    assert capsys.readouterr().err == f"waiting for {holder}, which is collecting into store\n"


def test_two_collectors_at_once_both_end_with_the_whole_store(run_maker) -> None:
    for number in range(20):
        run_maker(f"r{number}")
    command = [sys.executable, "-m", "analysis", "collect"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    both = [
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert sum("20 new" in text for text in told) == 1
    assert sum("20 unchanged" in text for text in told) == 1
    assert len(runs()) == 20


def test_a_rebuild_writes_over_no_file_of_the_damaged_store(run_maker) -> None:
    run_maker("a")
    collect()
    part = next(Path("store/history/train").iterdir())
    content = part.read_bytes()
    next(Path("store").glob("sources-*.json")).unlink()
    keep = part.with_name("kept.link")
    keep.hardlink_to(part)
    assert collect().new == 1
    assert not part.exists()
    assert keep.read_bytes() == content
    assert len(runs()) == 1
    assert collect().unchanged == 1
