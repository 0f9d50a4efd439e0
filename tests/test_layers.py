"""Who may import what. The rooms and their reasons are in docs/architecture.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

OURS = {"analysis", "hydra_plugins", "launch", "rundir", "sweeps", "trainer"}
ALLOWED = {
    "rundir": {"rundir"},
    "trainer": {
        "datasets",
        "huggingface_hub",
        "numpy",
        "rich",
        "rundir",
        "tensorboard",
        "tiktoken",
        "torch",
        "trainer",
        "transformers",
        "triton",
        "wandb",
    },
    "sweeps": {
        "hydra",
        "hydra_plugins",
        "omegaconf",
        "rich",
        "rundir",
        "submitit",
        "sweeps",
        "yaml",
    },
    "analysis": {
        "analysis",
        "matplotlib",
        "numpy",
        "pandas",
        "plotly",
        "pyarrow",
        "rich",
        "rundir",
        "yaml",
    },
    "hydra_plugins": {"hydra", "sweeps"},
}

FLOORS = {
    "analysis": ("parquet", "collecting"),
    "sweeps": (
        "define",
        "planning",
        "records",
        "cluster",
        "follow",
        "workers",
        "launch",
        "commands",
    ),
}
"""Rooms from the ground up: of its package, each imports from itself and from those below."""

ABOVE = {"analysis": {"plots", "report"}, "sweeps": set()}
"""Rooms that may import from everywhere in their package."""


def imports(path: Path) -> set[str]:
    """Return the modules that a module imports from anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def packages(path: Path) -> set[str]:
    """Return the top-level packages that a module imports from."""
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_what_it_may(room):
    modules = sorted((ROOT / room).rglob("*.py"))
    assert modules, f"{room} holds no module; has it moved?"
    for module in modules:
        foreign = packages(module) - ALLOWED[room] - set(sys.stdlib_module_names)
        assert not foreign, f"{module.relative_to(ROOT)} imports {', '.join(sorted(foreign))}"


@pytest.mark.parametrize("package", sorted(FLOORS))
def test_each_room_builds_on_those_below(package):
    floors = FLOORS[package]
    rooms = {path.parent.name for path in (ROOT / package).glob("*/*.py")}
    assert rooms == {*floors, *ABOVE[package]}
    for height, room in enumerate(floors):
        for module in (ROOT / package / room).glob("*.py"):
            ours = [name for name in imports(module) if name.startswith(f"{package}.")]
            used = {name.split(".")[1] for name in ours}
            assert not used - set(floors[: height + 1]), f"{module} imports from {used}"


@pytest.mark.parametrize("package", ["analysis", "sweeps", "trainer"])
def test_architecture_says_what_each_room_is_for(package):
    said = (ROOT / "docs" / "architecture.md").read_text()
    rooms = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    assert len(rooms) >= 4
    assert not {room for room in rooms if f"| `{room}/` | " not in said}


def loaded(*arguments: str, cwd: Path, path: str = "/usr/bin:/bin") -> set[str]:
    """Return the top-level packages in memory after Python has run with these arguments."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        cwd=cwd,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'sweeps'}", "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert len(lines) > 50
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}


@pytest.mark.parametrize(
    "arguments",
    [
        [str(ROOT / "launch.py"), "--help"],
        [str(ROOT / "launch.py"), "-m", "paths.sweep=s", "seed=1,2", "dry_run=true"],
        ["-m", "sweeps", "ls"],
        ["-m", "sweeps", "status"],
    ],
)
def test_nothing_on_the_login_node_imports_torch(arguments, shell, toy, tmp_path):
    shell("launch", "-m", *toy, "paths.sweep=before", "seed=1")
    assert not loaded(*arguments, cwd=tmp_path) & {"torch", "numpy", "pandas"}


ANSWERS = {
    "sbatch": "Submitted batch job 77",
    "scontrol": "MaxArraySize = 1001\nMaxJobCount = 10000",
    "squeue": "",
    "srun": "",
    "scancel": "",
    "sacct": "",
}
"""What the commands of a cluster without jobs print."""


def test_promise_27_neither_submitting_to_slurm_nor_cancelling_imports_torch(toy, tmp_path):
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, answer in ANSWERS.items():
        (commands / name).write_text(f"#!/bin/sh\nprintf '{answer}'\n")
        (commands / name).chmod(0o755)
    launch = [str(ROOT / "launch.py"), "-m", *toy, "paths.sweep=s", "seed=1,2", "cluster=slurm"]
    for arguments in (launch, ["-m", "sweeps", "cancel", "s"]):
        found = loaded(*arguments, cwd=tmp_path, path=f"{commands}:/usr/bin:/bin")
        assert not found & {"torch", "numpy", "pandas"}
    job = next((tmp_path / "multirun/s/.sweep").rglob("*.jsonl")).read_text()
    assert '"77"' in job


def test_the_notebook_imports_neither_torch_nor_hydra(tmp_path):
    code = "from analysis import runs, history, best, diff, lr_sensitivity"
    assert not loaded("-c", code, cwd=tmp_path) & {"torch", "hydra", "omegaconf", "matplotlib"}


def test_the_trainer_imports_where_hydra_is_not_installed(tmp_path):
    assert not loaded("-c", "import trainer.loop", cwd=tmp_path) & {
        "hydra",
        "omegaconf",
        "submitit",
    }


def test_launch_is_a_page():
    assert len((ROOT / "launch.py").read_text().splitlines()) < 150
