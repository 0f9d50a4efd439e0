"""Runs that are killed, fill the disk, or lose a file go on as if nothing had been."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import trainer
from rundir import OptsweepError, Run
from rundir.files import METRICS_FILE, iter_metrics
from trainer.checkpoints import newest_checkpoint
from trainer.optim.params import REGISTRY

Mapping = dict[str, Any]
Change = Callable[..., Mapping]
Curve = dict[tuple[str, int], float]

PROGRAM = Path(__file__).with_name("resuming.py")
ROOT = Path(trainer.__file__).parents[1]

DEATHS = (
    "between two steps",
    "at the first byte",
    "in the middle",
    "before fsync",
    "before the name",
    "before the hash",
    "as an old one goes",
)
DISK_FULL = "the checkpoint of step {} can't be written: [Errno {}] {}; {}"


def curve(path: Path, *attempts: int) -> Curve:
    """Return the losses by stream and step; a later attempt's replace an earlier one's."""
    records = iter_metrics(path / METRICS_FILE)
    wanted = attempts or (1, 2)
    return {(r["stream"], r["step"]): r["loss"] for r in records if r["attempt"] in wanted}


def trained(config: Mapping, path: Path) -> Curve:
    with Run(path, threads=1) as run:
        trainer.run(config, run)
    return curve(path)


def order(config: Mapping, path: Path, **more: Any) -> Mapping:
    given = {"config": config, "path": str(path), "attempt": 1, "ranks": 1, "forget": None}
    return {**given, "fate": None, "step": None, **more}


def carried_out(
    orders: list[Mapping], folder: Path, ports: Iterator[str]
) -> list[tuple[str, str | None]]:
    """Carry out the orders, one after the other, and return how each ended on either rank."""
    script = folder / "orders.json"
    given = [{**each, "port": next(ports)} for each in orders]
    script.write_text(json.dumps(given))
    here = {**os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(script)],
            env={**here, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for rank in (0, 1)
    ]
    try:
        errors = [rank.communicate(timeout=240)[1] for rank in ranks]
    finally:
        for rank in ranks:
            with suppress(ProcessLookupError):  # its forks too: they hold stderr open
                os.killpg(rank.pid, signal.SIGKILL)
            rank.communicate()
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    ends = [json.loads((folder / f"ends.{rank}.json").read_text()) for rank in (0, 1)]
    return list(zip(*ends, strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def short(tiny_mapping: Mapping, folder: Path) -> Mapping:
    """Six steps of two micro-batches, a checkpoint after three and after six."""
    config = copy.deepcopy(tiny_mapping)
    text = folder / "text.txt"  # quicker read than the plays
    text.write_text("".join(chr(97 + number**3 % 23) for number in range(5000)))
    config["data"]["dataset"] |= {"name": "text", "path": str(text)}
    config["training"]["training_params"]["max_steps"] = 6
    config["logging"]["logging_params"] |= {"save_ckpt_step": 3, "val_step": 2}
    return config


@pytest.fixture(scope="module")
def ends(short: Mapping, folder: Path, ports: Iterator[str]) -> dict[str, tuple[str, str | None]]:
    """How everything ended that the tests below look at, by directory and attempt."""
    orders = []
    for name in sorted(REGISTRY):
        config = copy.deepcopy(short)
        config["optimizer"]["optimizer_params"] = {"name": name, "lr": 0.01}
        path = folder / "two" / name
        orders += [
            order(config, path, ranks=2),
            order(config, path, ranks=2, attempt=2, forget=3),
        ]
    short = copy.deepcopy(short)
    short["logging"]["logging_params"]["keep_last"] = 1
    orders.append(order(short, folder / "undisturbed"))
    for number, death in enumerate(DEATHS):
        path, fate = folder / "one" / str(number), {"fate": death, "step": 4}
        orders += [order(short, path, **fate), order(short, path, attempt=2)]
    path, fate = folder / "two" / "killed", {"fate": "in the middle", "step": 4}
    orders += [order(short, path, ranks=2, **fate), order(short, path, ranks=2, attempt=2)]
    path, fate = folder / "limited", {"fate": "no room", "step": 4}
    orders += [order(short, path, **fate), order(short, path, attempt=2)]
    for kind, group, values in (
        ("limited", "logging", {}),
        ("inline", "logging", {"save_in_background": False}),
        ("sharded", "training", {"parallel": "fsdp"}),
        ("early", "logging", {"save_ckpt_step": 2}),
    ):
        config = copy.deepcopy(short)
        config[group][f"{group}_params"] |= values
        step = 1 if kind == "early" else 4
        orders.append(order(config, folder / "two" / kind, ranks=2, fate="no room", step=step))
    keys = [f"{Path(each['path']).relative_to(folder)} {each['attempt']}" for each in orders]
    return dict(zip(keys, carried_out(orders, folder, ports), strict=True))


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_two_ranks_continue_to_the_bit_with_every_optimizer(
    ends: Mapping, folder: Path, name: str
) -> None:
    assert ends[f"two/{name} 1"] == ends[f"two/{name} 2"] == ("completed", "completed")
    path = folder / "two" / name
    first, again = curve(path, 1), curve(path, 2)
    assert {step for _, step in again} == {4, 5, 6}
    assert again == {at: loss for at, loss in first.items() if at[1] > 3}


def test_every_optimizer_that_can_be_chosen_is_among_them() -> None:
    assert set(REGISTRY) == {path.stem for path in (ROOT / "conf" / "optimizer").glob("*.yaml")}


@pytest.mark.parametrize("number", range(len(DEATHS)), ids=DEATHS)
def test_killed_anywhere_a_run_goes_on_to_the_bit(ends: Mapping, folder: Path, number: int) -> None:
    assert ends[f"one/{number} 1"] == ("SIGKILL", None)
    assert ends[f"one/{number} 2"] == ("completed", None)
    path = folder / "one" / str(number)
    assert curve(path) == curve(folder / "undisturbed")
    was_done = DEATHS[number] == "as an old one goes"
    assert min((step for _, step in curve(path, 2)), default=7) == (7 if was_done else 4)
    left = sorted(file.name for file in (path / "checkpoints").iterdir())
    assert left[-2:] == ["step-00000006.pt", "step-00000006.pt.sha256"]
    assert left[:-2] == (["step-00000003.pt"] if was_done else [])


def test_killed_in_the_middle_of_writing_two_ranks_go_on_to_the_bit(
    ends: Mapping, folder: Path
) -> None:
    killed, other = ends["two/killed 1"]
    assert killed == "SIGKILL"
    assert other is not None
    assert other.startswith("RanksLost: ") or other == "completed"
    assert ends["two/killed 2"] == ("completed", "completed")
    assert min(step for _, step in curve(folder / "two" / "killed", 2)) == 4
    assert curve(folder / "two" / "killed") == curve(folder / "two" / "adamw", 1)


def test_a_file_that_may_not_grow_is_said_in_words_and_costs_nothing_saved_before(
    ends: Mapping, folder: Path
) -> None:
    said = DISK_FULL.format(6, 27, "File too large", "that of step 3 stays")
    assert ends["limited 1"] == (f"OptsweepError: {said}", None)
    assert ends["limited 2"] == ("completed", None)
    assert min(step for _, step in curve(folder / "limited", 2)) == 4
    assert curve(folder / "limited") == curve(folder / "undisturbed")


@pytest.mark.parametrize("kind", ["limited", "inline", "sharded", "early"])
def test_what_rank_0_cannot_write_ends_all_ranks_in_its_words(
    ends: Mapping, folder: Path, kind: str
) -> None:
    left = "there is no earlier one" if kind == "early" else "that of step 3 stays"
    said = DISK_FULL.format(2 if kind == "early" else 6, 27, "File too large", left)
    path = f"two/{kind}"
    assert ends[f"{path} 1"] == (f"OptsweepError: {said}", f"RanksLost: rank 0 failed: {said}")


@contextmanager
def small_disk(at: Path, size: int) -> Iterator[Callable[[int], None]]:
    """Mount a disk of that many bytes; yields what changes its size."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts a file system")
    at.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(at)]
    made = subprocess.run(mount, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    try:
        yield lambda larger: subprocess.run(
            ["mount", "-o", f"remount,size={larger}", str(at)], check=True
        ).check_returncode()
    finally:
        subprocess.run(["umount", str(at)], check=True)


@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk_is_said_in_words_and_costs_nothing_saved_before(
    tiny: Mapping, change: Change, tmp_path: Path, background: bool
) -> None:
    change(tiny, logging__logging_params__save_in_background=background)
    undisturbed = trained(tiny, tmp_path / "a")
    newest = newest_checkpoint(tmp_path / "a" / "checkpoints")
    assert newest is not None
    room = int(newest.stat().st_size * 1.5)
    path = tmp_path / "b"
    with small_disk(path / "checkpoints", room) as resized:
        with pytest.raises(OptsweepError) as error:
            trained(tiny, path)
        said = DISK_FULL.format(8, 28, "No space left on device", "that of step 4 stays")
        assert str(error.value) == said
        files = sorted(file.name for file in (path / "checkpoints").iterdir())
        assert files == ["step-00000004.pt", "step-00000004.pt.sha256"]
        resized(room * 10)
        assert trained(tiny, path) == undisturbed
        assert min(step for _, step in curve(path, 2)) == 5
