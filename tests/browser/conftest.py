"""A real headless Chromium for the tests in this folder, and sweeps whose report it opens.

In CI none of these tests may be skipped: there a skip is a failure.
"""

from __future__ import annotations

import json
import os
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from analysis.collecting.collector import collect
from analysis.report import write_report

PATIENCE = 30_000
"""Milliseconds for what takes a tenth of a second on an idle machine."""
INSTALL = Path(__file__).with_name("install.sh")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, started once for a module; the test is skipped where none is installed."""
    check = subprocess.run([INSTALL, "--check"], text=True, capture_output=True, check=False)
    if check.returncode:
        pytest.skip(check.stderr.strip())
    expect.set_options(timeout=PATIENCE)
    # Chromium's sandbox refuses root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=check.stdout.split()[-1], args=arguments
        )
        yield chromium
        chromium.close()


@dataclass
class Visit:
    """A page that opened a file with the network cut off, and what it should not have done."""

    page: Page
    address: str
    errors: list[str] = field(default_factory=list)
    """Uncaught exceptions and what the console calls an error."""
    requests: list[str] = field(default_factory=list)
    """Addresses that it asked for, its own file apart."""

    def refuse(self, route: Route) -> None:
        if route.request.url.partition("#")[0] == self.address:
            route.continue_()
        else:
            self.requests.append(route.request.url)
            route.abort()

    def faultless(self) -> None:
        assert self.errors == []
        assert self.requests == []


@contextmanager
def visiting(browser: Browser, path: Path, **settings: Any) -> Iterator[Visit]:
    """Open a file in a window of its own."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
    context.set_default_timeout(PATIENCE)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    seen = Visit(context.new_page(), path.as_uri())
    context.route("**/*", seen.refuse)
    seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
    seen.page.on("console", lambda m: seen.errors.append(m.text) if m.type == "error" else None)
    seen.page.goto(seen.address)
    yield seen
    context.close()


Visiting = Callable[..., AbstractContextManager[Visit]]


@pytest.fixture
def visit(browser: Browser) -> Visiting:
    """Return what opens a file in a window of its own."""
    return partial(visiting, browser)


@pytest.fixture(scope="module")
def window(browser: Browser, small: Path) -> Iterator[Visit]:
    """The report of the small sweep, opened once for a module."""
    with visiting(browser, small) as seen:
        yield seen


@pytest.fixture
def page(window: Visit) -> Iterator[Page]:
    """The report of the small sweep as it opens; an error or a request fails the test."""
    window.page.emulate_media(color_scheme="light")
    window.page.set_viewport_size({"width": 1280, "height": 900})
    window.page.evaluate("location.hash = 'filter='")
    window.page.mouse.move(1, 1)
    yield window.page
    window.faultless()


def write_run(
    root: Path,
    name: str,
    *,
    optimizer: str = "adamw",
    lr: float = 0.01,
    seed: int = 0,
    steps: int = 10,
    final: float = 2.0,
    state: str = "completed",
    sweep: str = "small",
    **record: Any,
) -> None:
    """Write a run directory whose loss falls from 5 to ``final``; a diverged one ends in NaN."""
    directory = root / "multirun" / sweep / optimizer.replace("/", "-") / name.replace("/", "-")
    directory.mkdir(parents=True)
    extra = {"momentum": 0.95} if optimizer == "muon" else {"betas": [0.9, 0.95]}
    run = {
        "version": 1,
        "name": name,
        "signature": f"signature of {name}",
        "sweep": sweep,
        "index": 0,
        "config": {"optimizer": {"optimizer_params": {"name": optimizer, "lr": lr, **extra}}}
        | {"seed": seed, "model": {"n_layer": 2}},
        "overrides": [
            f"optimizer={optimizer}",
            f"optimizer.optimizer_params.lr={lr}",
            f"seed={seed}",
        ],
        "packages": {"torch": "2.13.0"},
        "git": {"sha": "0123456789abcdef", "dirty": False},
        "attempts": [{"host": "node1", "threads": 4, "slurm": {"job_id": "77_3"}}],
    }
    status = {"version": 1, "state": state, "attempt": 1, "step": steps, "total_steps": steps}
    status |= {"started_at": 1e9, "updated_at": 1e9 + steps, "ended_at": 1e9 + steps}
    status |= {"reason": record.pop("reason", None)}
    (directory / "run.json").write_text(json.dumps(run | record))
    (directory / "status.json").write_text(json.dumps(status))
    at = np.arange(1, steps + 1)
    noise = 0.02 * np.random.default_rng(zlib.crc32(name.encode())).standard_normal(steps)
    losses = final + (5 - final) * np.exp(-5 * at / steps) + noise
    lines = []
    for step, loss in zip(at.tolist(), losses.tolist(), strict=True):
        common = {"step": step, "t": 1e9 + step, "attempt": 1}
        told = float("nan") if state == "diverged" and step == steps else loss
        more = {"lr": lr, "grad_norm": 1.0, "tokens": 1024 * step}
        lines.append({"stream": "train", **common, "loss": told, **more})
        if step % (steps // 5) == 0:
            lines.append({"stream": "val", **common, "loss": told})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "metrics.jsonl").write_text(text)


HOSTILE = "</script><script>window.__hacked=1</script><img src=x onerror=window.__hacked=2>"
HOSTILE_REASON = f"{HOSTILE} \u2028\u2029 \"quoted\" 'single' &lt;b&gt; <b>bold</b> </textarea>"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a sweep with two optimizers, seeds, every kind of end, and hostile texts."""
    return write_small(tmp_path_factory.mktemp("small"))


def write_small(root: Path) -> Path:
    for optimizer, best in (("adamw", 2.4), ("muon", 2.0)):
        for lr in (0.003, 0.01, 0.03):
            for seed in (0, 1, 2):
                final = best + 3 * abs(lr - 0.01) * 10 + 0.01 * seed
                name = f"{optimizer}-{lr}-{seed}"
                write_run(root, name, optimizer=optimizer, lr=lr, seed=seed, final=final)
    write_run(root, "wild", lr=1.0, state="diverged", reason="train loss = nan")
    write_run(root, "short", lr=0.1, seed=1, state="out_of_memory", reason=HOSTILE_REASON)
    hostile = HOSTILE.replace("/", "|")
    write_run(root, "hostile", optimizer=hostile, final=3.5, overrides=[f"optimizer={HOSTILE}"])
    plan = {
        "index": 9,
        "name": "missing",
        "directory": "muon/missing",
        "signature": "later",
        "overrides": ["optimizer=muon", "optimizer.optimizer_params.lr=0.3", "seed=0"],
        "varying": {"optimizer": "muon", "optimizer.optimizer_params.lr": 0.3, "seed": 0},
    }
    (root / "multirun/small/.sweep").mkdir()
    planned = json.dumps({"version": 1, "sweep": "small", "runs": [plan]})
    (root / "multirun/small/.sweep/plan.json").write_text(planned)
    return report_of(root, "small")


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """The report of one run that has left nothing but its name."""
    directory = tmp_path / "multirun" / "alone" / "x"
    directory.mkdir(parents=True)
    record = {"version": 1, "sweep": "alone", "config": {}}
    (directory / "run.json").write_text(json.dumps(record))
    return report_of(tmp_path, "alone")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of 1,000 runs of 100 steps and 6 metrics."""
    root = tmp_path_factory.mktemp("large")
    for i in range(1000):
        lr, optimizer = 10.0 ** (i % 5 - 4), ("adamw", "muon", "soap", "lion")[i // 5 % 4]
        more = {"optimizer": optimizer, "lr": lr, "seed": i // 20, "final": 2 + i % 20 / 20}
        write_run(root, f"run-{i}", steps=100, sweep="large", **more)
    return report_of(root, "large")


def report_of(root: Path, sweep: str) -> Path:
    store = root / "store"
    collect([root / "multirun"], store)
    return write_report(sweep, root / f"{sweep}.html", store).path
