"""The benchmark of training steps times what it says it does, and reports what it measured."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("report", "sides", "train")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


def test_ratios_are_of_the_turns_and_the_faster_llama_counts(bench, capsys) -> None:
    def side(name: str, *seconds: float):
        half = [s / 2 for s in seconds]
        return bench.train.Side(name, None, list(seconds), half, 1.0, 2e6)

    case = next(case for case in bench.sides.CASES if case.device == "cpu")
    # The machine is twice as slow in the second turn.
    group = [
        side("ours", 2.0, 4.0, 2.0),
        side("llama", 3.0, 6.0, 3.0),
        side("llama, compiled", 2.2, 4.4, 2.2),
    ]
    gone = bench.train.Side("ours, compiled", None, fault="ended with code 1")
    report = bench.report.Report("train")
    rows = bench.train.report_case(report, case, [*group, gone], "cpu")
    assert report.end() == 1  # 1.1 is less than 1.15
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["figures"]["gpt_3_2M_ratio"] == pytest.approx(1.1)
    assert line["figures"]["gpt_3_2M_ours_tokens_per_s"] == pytest.approx(1024)
    assert [row[1:4] for row in rows] == [
        ["ours", "1024", "1.00"],
        ["llama", "683", "1.50"],
        ["llama, compiled", "931", "1.10"],
        ["ours, compiled", "-", "-"],
    ]
    assert rows[-1][-1] == "ended with code 1"


def test_what_is_not_installed_is_left_out_and_it_says_so(bench, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    bench.train.launch_fault.cache_clear()
    names, notes = bench.train.sides_of("gpt-small", quick=False, device="cuda")
    bench.train.launch_fault.cache_clear()
    assert names == ["ours"]
    assert notes == [
        "no Llama: transformers is not installed (optsweep[hf])",
        "nothing compiled: Triton is not installed here; it comes with the extra optsweep[triton]",
    ]


def test_a_side_steps_when_it_is_asked(bench) -> None:
    arguments = [sys.executable, str(BENCHMARKS / "sides.py"), "ours", "gpt-3.2M", "cpu", "1"]
    done = subprocess.run(
        arguments,
        input="ready\n1\npeak\n",
        capture_output=True,
        text=True,
        check=True,
        env=dict(bench.report.environment()),
    )
    ready, step, peak = map(json.loads, done.stdout.splitlines())
    assert 0 < step["seconds"] < ready["seconds"]
    assert step["processor_seconds"] > 0
    # At least weights, gradients and two moments of 3.2 million numbers.
    assert peak["bytes"] > 3.2e6 * 4 * 4
