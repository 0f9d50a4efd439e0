"""Which GPUs a record says that a run had."""

import os

import pytest

from sweeps.records import provenance
from sweeps.records.provenance import gpus

SMI = """#!/bin/sh
echo asked >> "{said}"
echo "0, GPU-aaaa1111, NVIDIA A100-SXM4-40GB"
echo "1, GPU-bbbb2222, NVIDIA H100 PCIe"
echo "2, GPU-cccc3333, NVIDIA L4"
"""


@pytest.fixture(autouse=True)
def asked(tmp_path, monkeypatch):
    """A machine with three GPUs; the file has a line for each time that its tool was called."""
    said, tool = tmp_path / "asked", tmp_path / "nvidia-smi"
    tool.write_text(SMI.format(said=said))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    provenance._gpus.cache_clear()
    yield said
    provenance._gpus.cache_clear()


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("", []),
        ("1", ["NVIDIA H100 PCIe"]),
        ("2,0", ["NVIDIA L4", "NVIDIA A100-SXM4-40GB"]),
        ("GPU-bbbb", ["NVIDIA H100 PCIe"]),
        ("0,-1,1", ["NVIDIA A100-SXM4-40GB"]),
        ("7", []),
        ("G", []),
    ],
)
def test_a_run_has_the_gpus_that_are_visible_to_it(monkeypatch, visible, names):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus() == names


def test_a_run_beside_others_has_its_own_gpu_and_asks_no_tool_again(monkeypatch, asked):
    assert len(gpus()) == 3  # as a worker does before it forks
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")  # as it does in the fork
    assert gpus() == ["NVIDIA H100 PCIe"]
    assert asked.read_text() == "asked\n"
