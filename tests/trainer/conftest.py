"""The smallest configuration that still learns."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rundir import Run

Mapping = dict[str, Any]
Command = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).resolve().parents[2]

PORTS = range(10_000, 20_000)
"""Below those that the kernel gives to whoever asks for any: such a one may be another test's by
the time that ranks meet there, and who comes to a stranger's meeting waits for good."""


@pytest.fixture(scope="session")
def ports() -> Iterator[str]:
    """Free TCP ports, each another one, of which other processes of tests have none."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10
    return (str(port) for port in itertools.cycle(PORTS[worker::10]) if _is_free(port))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture
def tiny(tiny_mapping: Mapping) -> Mapping:
    """Twelve steps of a 5,000-parameter model; about 0.1 s."""
    return copy.deepcopy(tiny_mapping)


@pytest.fixture(scope="session")
def tiny_mapping() -> Mapping:
    """As ``tiny``, shared by all tests: not to be changed."""
    return {
        "model": {
            "name": "tiny",
            "config": {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 256},
        },
        "data": {"dataset": {"name": "shakespeare", "tokenizer": "bytes", "vocab_size": 256}},
        "training": {
            "training_params": {
                "tokens_processed": 128,
                "val_tokens_processed": 128,
                "batch_size": 4,
                "context_length": 16,
                "max_steps": 12,
            }
        },
        "optimizer": {"optimizer_params": {"name": "adamw", "lr": 0.01}},
        "logging": {"logging_params": {"log_step": 1, "val_step": 3, "save_ckpt_step": 4}},
        "device": "cpu",
    }


@pytest.fixture
def change() -> Callable[..., Mapping]:
    """Return a function that sets dotted keys of a mapping in place."""

    def set_keys(mapping: Mapping, **values: object) -> Mapping:
        for dotted, value in values.items():
            *path, last = dotted.split("__")
            node = mapping
            for key in path:
                node = node[key]
            node[last] = value
        return mapping

    return set_keys


class StoppingRun(Run):
    """A run that is asked to stop once a step has been logged."""

    def __init__(self, path: Path, stop_after: int) -> None:
        super().__init__(path, threads=1)
        self._stop_after = stop_after

    def log(self, stream: str, step: int, **metrics: float) -> None:
        super().log(stream, step, **metrics)
        if step == self._stop_after:
            self.request_stop("SIGTERM")


@pytest.fixture(scope="session")
def stopping_run() -> type[StoppingRun]:
    return StoppingRun


@pytest.fixture(scope="session")
def with_triton() -> Command:
    """Return a function that has a fresh Python carry out words, with these in its environment."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed: pip install -e '.[triton]'")

    def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def in_the_interpreter(
    with_triton: Command, request: pytest.FixtureRequest
) -> Callable[[str], str]:
    """Return a function that runs the tests of a file beside this one in Triton's interpreter."""

    def passed(file: str) -> str:
        tests = request.path.with_name(file)
        quiet = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
        done = with_triton(*quiet, tests, TRITON_INTERPRET="1")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return passed
