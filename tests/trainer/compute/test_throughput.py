from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import trainer
from trainer.compute.throughput import Pace, peak_flops, peak_memory, peak_of


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("AMD Instinct MI250X", 191.5),
    ],
)
def test_the_peak_is_that_of_the_makers_data_sheet(name: str, tera: float) -> None:
    assert peak_of(name) == tera * 1e12


@pytest.mark.parametrize("name", ["NVIDIA GeForce GTX 1080", "NVIDIA A100-SXM4-40GB MIG 1g.5gb"])
def test_an_unknown_device_has_no_peak(name: str) -> None:
    assert peak_of(name) is None


def test_a_cpu_has_no_peak_and_no_mfu() -> None:
    assert peak_flops(torch.device("cpu")) is None
    pace = Pace(10, 1e9, None)
    pace.count()
    assert set(pace.take()) == {"step_time", "tokens_per_second"}


def test_mfu_is_the_models_flops_over_the_peak() -> None:
    pace = Pace(1000, 6e6, 1e12)
    for _ in range(4):
        pace.count()
    time.sleep(0.02)
    with pace.paused():
        time.sleep(0.05)
    figures = pace.take()
    assert 0.005 <= figures["step_time"] < 0.017
    assert figures["tokens_per_second"] == pytest.approx(1000 / figures["step_time"])
    assert figures["mfu"] == pytest.approx(figures["tokens_per_second"] * 6e6 / 1e12)


def test_memory_is_the_most_that_the_process_itself_has_held() -> None:
    program = (
        "import torch; from trainer.compute.throughput import peak_memory as peak\n"
        "cpu = torch.device('cpu'); before = peak(cpu)\n"
        "block = torch.ones(50_000_000); del block\n"
        "print(before, peak(cpu))"
    )
    held = bytearray(os.urandom(1)) * 600_000_000
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(trainer.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = map(int, done.stdout.split())
    assert 100e6 < before < len(held)
    assert after - before == pytest.approx(200e6, rel=0.2)
    own = peak_memory(torch.device("cpu"))
    assert own is not None
    assert own > len(held)
