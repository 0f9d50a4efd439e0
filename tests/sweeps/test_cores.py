"""Which GPUs local workers share out."""

from pathlib import Path

import pytest

from sweeps.cluster.cores import visible_gpus


def devices(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).touch()
    return folder


@pytest.fixture(autouse=True)
def _none_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        ((), ()),
        (("nvidiactl", "nvidia-uvm"), ()),
        (("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"), ("0", "1")),
        # What a container gets of a machine keeps its name there; CUDA counts anew.
        (("nvidia3", "nvidiactl"), ("0",)),
        (("nvidia5", "nvidia7"), ("0", "1")),
    ],
)
def test_ids_are_those_that_cuda_counts_by(tmp_path, names, ids):
    assert visible_gpus(devices(tmp_path, *names), tmp_path / "libcuda.so.1") == ids


def test_the_gpu_that_windows_lends_is_one(tmp_path):
    found = devices(tmp_path, "dxg", "libcuda.so.1")
    assert visible_gpus(found, found / "libcuda.so.1") == ("0",)


def test_what_is_chosen_comes_before_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-8f3a,-1,0")
    assert visible_gpus(devices(tmp_path, "nvidia0")) == ("2", "GPU-8f3a")
