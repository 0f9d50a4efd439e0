"""A collector killed between any two changes of the disk: the store as it was, then completed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis import history, runs
from analysis.collecting.collector import collect
from analysis.parquet.manifest import StoreError, load
from analysis.parquet.parts import read_problems

STORE = Path("store")
DIED = 7
NEXT_STEP = '{"stream": "train", "step": 11, "t": 1.0, "attempt": 1, "loss": 2.0}'
KILLED_AT_THE_MANIFEST = f"""
import os
from analysis.collecting.collector import collect
replace = os.replace
def die(source, target):
    if os.path.basename(target) == "manifest.json":
        os._exit({DIED})
    replace(source, target)
os.replace = die
collect()
"""


class Killed(BaseException):
    """Caught by nothing that a collector runs through, as little as SIGKILL."""


def content() -> tuple[str, str, str, list[dict[str, Any]]] | None:
    """What a reader sees; None without a store."""
    try:
        tables = runs(all_columns=True), history("train"), history("val")
        return *(table.to_csv() for table in tables), read_problems(STORE).to_pylist()
    except StoreError:
        return None


def names() -> list[str]:
    """What lies in the store, whatever generation it is of."""
    paths = (str(path.relative_to(STORE)) for path in STORE.rglob("*"))
    return sorted(re.sub(r"(-t?\d+)+\.", ".", path) for path in paths)


def spoil(run: Path, line: str) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(f"{line}\n")


def kill_at(
    moment: int, monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]
) -> tuple[bool, bool]:
    """Do the work up to just before or after one rename or removal.

    Returns:
        Whether it was killed, and whether the manifest was in its place by then.
    """
    passed, visible = 0, False

    def pass_by() -> None:
        nonlocal passed
        passed += 1
        if passed == moment:
            raise Killed

    def step(act: Callable[..., None]) -> Callable[..., None]:
        def counted(*args: Any, **named: Any) -> None:
            nonlocal visible
            pass_by()
            act(*args, **named)
            visible |= Path(args[-1]).name == "manifest.json"
            pass_by()

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", step(os.replace))
        patch.setattr(Path, "unlink", step(Path.unlink))
        try:
            work()
        except Killed:
            return True, visible
    return False, visible


def change_everything(run_maker: Callable[..., Path]) -> None:
    """Grow one run, remove one, add one of another type and a plan, with a bad line in each."""
    spoil(Path("multirun/quickstart/nano/adamw/a"), NEXT_STEP)
    spoil(Path("multirun/quickstart/nano/adamw/a"), "garbage too")
    shutil.rmtree("multirun/quickstart/nano/adamw/b")
    spoil(run_maker("d", config={"lr": "fast"}), "new garbage")
    planned = {"index": 9, "name": "p", "directory": "nano/adamw/p", "signature": "p"}
    plan = Path("multirun/quickstart/.sweep/plan.json")
    plan.parent.mkdir()
    plan.write_text(json.dumps({"version": 1, "sweep": "quickstart", "runs": [planned, 5]}))


@pytest.mark.parametrize("case", ["first_collect", "later_collect", "sources_lost"])
def test_killed_between_any_two_steps_the_next_collect_completes_it(
    run_maker, monkeypatch, case: str
) -> None:
    monkeypatch.setattr("analysis.collecting.update.RUNS_PER_BUCKET", 1)
    # A kill loses nothing that the kernel has; only a crash of the machine does.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    for name in ("a", "b"):
        spoil(run_maker(name, config={"lr": 0.5}), "garbage")
    if case != "first_collect":
        collect(workers=1)
        change_everything(run_maker)
    if case == "sources_lost":
        (lost,) = STORE.glob("sources-*.json")
        lost.unlink()
    saved = Path("saved")
    STORE.mkdir(exist_ok=True)
    shutil.copytree(STORE, saved)
    before = content()
    collect(workers=1)
    after = content()
    files = names()
    grown = [part for part in load(STORE).parts["history/train"] if part.rows == 1]
    assert len(grown) == (case == "later_collect")
    moment, killed = 0, True
    while killed:
        moment += 1
        shutil.rmtree(STORE)
        shutil.copytree(saved, STORE)
        killed, visible = kill_at(moment, monkeypatch, lambda: collect(workers=1))
        assert content() == (after if visible else before), moment
        collect(workers=1)
        assert content() == after, moment
        assert names() == files, moment
    # At least the parts of two runs in three tables, problems, sources and the manifest.
    assert moment > 2 * (2 * 3 + 3)


def test_a_process_that_dies_at_the_manifest_leaves_each_bad_line_once(run_maker) -> None:
    run = run_maker("a")
    spoil(run, "garbage")
    collect()
    before = content()
    spoil(run, "garbage too")
    died = subprocess.run(
        [sys.executable, "-c", KILLED_AT_THE_MANIFEST],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert died.returncode == DIED
    assert content() == before
    assert list(STORE.glob(".manifest.json.*"))
    collect()
    details = [row["detail"] for row in read_problems(STORE).to_pylist()]
    assert details == ["not JSON: garbage ", "not JSON: garbage too "]
    assert runs()["name"].tolist() == ["a"]
    assert not list(STORE.glob(".manifest.json.*"))
