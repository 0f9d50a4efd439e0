"""A place to launch from: a temporary directory, the project's launch.py, and the toy task."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

TOY = ("task=toy.run", "check=toy.check", "training.training_params.max_steps=3")
"""Overrides that replace the trainer by tests/sweeps/toy.py."""

INSTALLED = {"slurm", "browser", "corpus"}
"""Rooms of tests for which `make test` installs what they need; in CI a skip there is a failure."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    room = item.path.parent.name
    if report.skipped and room in INSTALLED and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"a test of tests/{room} may not be skipped in CI: {report.longrepr}"
    return report


@dataclass
class Shell:
    """Runs the project's commands as a user would, from a directory of the test's own."""

    cwd: Path
    env: dict[str, str] = field(default_factory=dict)
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        toy = str(ROOT / "tests" / "sweeps")
        path = os.pathsep.join([str(ROOT), toy])
        # The tokens for this machine's cores lie in TMPDIR: a sweep of the developer's own, or of
        # another test, must not make this one wait.
        tokens = self.cwd.parent / f"{self.cwd.name}-tmp"
        tokens.mkdir(exist_ok=True)
        ours = {"PYTHONPATH": path, "TMPDIR": str(tokens), "COLUMNS": "200"}
        return {**os.environ, **self.env, **ours}

    def command(self, *arguments: str) -> list[str]:
        first = (
            [sys.executable, str(ROOT / "launch.py")]
            if arguments[0] == "launch"
            else [sys.executable]
        )
        return [*first, *(arguments[1:] if arguments[0] == "launch" else arguments)]

    def start(self, *arguments: str, **more: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self.command(*arguments),
            cwd=self.cwd,
            env=self.environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **more,
        )
        self.started.append(process)
        return process

    def find(self, name: str) -> list[Path]:
        """Return the files of this name below the directory, also while others come and go."""
        # Path.rglob raises where a directory vanishes under it; os.walk passes over it.
        found = [Path(top) / name for top, _, files in os.walk(self.cwd) if name in files]
        return sorted(found)

    def close(self) -> None:
        """End what was started and still runs, as it does where a test failed."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def __call__(self, *arguments: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.cwd,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done

    def status(self, *sweep: str) -> list[dict[str, Any]]:
        """Return the runs that ``python -m sweeps status --json`` tells of."""
        found: list[dict[str, Any]] = json.loads(
            self("-m", "sweeps", "status", *sweep, "--json", code=None).stdout
        )["runs"]
        return found

    def wait_until(
        self,
        condition: Callable[[list[dict[str, Any]]], object],
        seconds: float = 120,
        sweep: str = "s",
    ) -> list[dict[str, Any]]:
        """Return the sweep's runs once they meet the condition."""
        end = time.monotonic() + seconds
        while True:
            found = self.status(sweep)
            if condition(found):
                return found
            assert time.monotonic() < end, (found, self.logs(sweep))
            time.sleep(0.2)

    @staticmethod
    def ended(runs: list[dict[str, Any]]) -> bool:
        return not {run["state"] for run in runs} & {"pending", "running", "planned"}

    @staticmethod
    def completed(runs: list[dict[str, Any]]) -> bool:
        return {run["state"] for run in runs} == {"completed"}

    def logs(self, sweep: str = "s") -> str:
        """Return the ends of the logs of the sweep's workers and runs."""
        folder = self.cwd / "multirun" / sweep
        files = [*folder.glob(".sweep/submissions/*/*_log.out"), *folder.glob("**/train*.log")]
        return "\n".join(f"--- {file}\n{file.read_text()[-3000:]}" for file in files)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.close()


@pytest.fixture
def toy() -> tuple[str, ...]:
    return TOY
