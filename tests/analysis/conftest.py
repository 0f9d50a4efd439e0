"""Run directories as the trainer and the sweeps leave them, in a directory of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.parquet.parts import read_problems
from rundir import Diverged, Run, write_json

MakeRun = Callable[..., Path]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a test; the store is its store/."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_run(
    name: str,
    *,
    sweep: str = "quickstart",
    optimizer: str = "adamw",
    lr: float = 0.001,
    seed: int = 0,
    steps: int = 10,
    loss: Callable[[int], float] = lambda step: 4.0 - 0.1 * step,
    error: Exception | None = None,
    config: dict[str, Any] | None = None,
    **record: Any,
) -> Path:
    """Write one run below multirun/ of the working directory through ``rundir.Run``."""
    directory = Path("multirun", sweep, "nano", optimizer, name)
    directory.mkdir(parents=True)
    extra = {"betas": [0.9, 0.95]} if optimizer == "adamw" else {"momentum": 0.95}
    default = {
        "model": {"name": "nano", "config": {"n_layer": 2}},
        "optimizer": {"optimizer_params": {"name": optimizer, "lr": lr, **extra}},
        "seed": seed,
    }
    values = {
        "version": 1,
        "name": name,
        "signature": f"signature of {name}",
        "sweep": sweep,
        "index": 0,
        "config": default if config is None else config,
        "overrides": [f"optimizer={optimizer}", f"optimizer.optimizer_params.lr={lr}"],
        "packages": {"torch": "2.13.0"},
    }
    write_json(directory / "run.json", {**values, **record})
    try:
        with Run(directory) as run:
            for step in range(1, steps + 1):
                run.log("train", step, loss=loss(step), tokens_per_second=1000.0 + step)
                run.progress(step, 10)
            run.log("val", steps, loss=loss(steps))
            if error is not None:
                raise error
    except (Diverged, RuntimeError) as raised:
        if raised is not error:
            raise
    return directory


def make_sweep() -> None:
    """Write a sweep with completed, diverged, failed and missing runs."""
    for lr in (0.001, 0.01):
        make_run(f"a-{lr}", lr=lr, loss=lambda step, lr=lr: 3.0 - 0.1 * step - 10 * lr)
        make_run(
            f"m-{lr}", optimizer="muon", lr=lr, loss=lambda step, lr=lr: 2.5 - 0.1 * step + 10 * lr
        )
    make_run(
        "a-1", lr=1.0, loss=lambda step: float("nan") if step > 5 else 9.0, error=Diverged("nan")
    )
    make_run("m-1", optimizer="muon", lr=1.0, steps=3, error=RuntimeError("no memory"))
    planned = {
        "index": 6,
        "name": "m-0.1",
        "directory": "nano/muon/m-0.1",
        "signature": "later",
        "overrides": ["optimizer=muon", "optimizer.optimizer_params.lr=0.1"],
        "varying": {"optimizer": "muon", "optimizer.optimizer_params.lr": 0.1},
    }
    present = {**planned, "index": 0, "name": "a-0.001", "directory": "nano/adamw/a-0.001"}
    plan = Path("multirun/quickstart/.sweep/plan.json")
    plan.parent.mkdir()
    plan.write_text(json.dumps({"version": 1, "sweep": "quickstart", "runs": [present, planned]}))


@pytest.fixture
def run_maker(place: Path) -> MakeRun:
    return make_run


@pytest.fixture
def sweep_place(place: Path) -> Path:
    """A working directory with a sweep of every kind of run in it, not collected."""
    make_sweep()
    return place


@pytest.fixture
def problems(place: Path) -> Callable[[], list[tuple[str, str]]]:
    """Return kind and detail of what the store of the working directory could not take."""

    def read() -> list[tuple[str, str]]:
        rows = read_problems(Path("store")).to_pylist()
        return [(row["kind"], row["detail"]) for row in rows]

    return read


@pytest.fixture
def bare(place: Path) -> MakeRun:
    """Write a run directory file by file; ``__`` in a name is a slash, ``_`` before json a dot."""

    def write(directory: str, **files: str) -> Path:
        path = Path(directory)
        for name, text in files.items():
            file = path / name.replace("__", "/").replace("_", ".")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return path

    return write
