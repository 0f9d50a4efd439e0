"""Which device ``device: auto | cpu | cuda`` means, and what is said of it."""

from __future__ import annotations

import logging

import pytest
import torch

from trainer.parallel import pick_device


@pytest.fixture(autouse=True)
def _without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.mark.parametrize(
    ("wanted", "gpu", "said"), [("auto", True, 1), ("auto", False, 0), ("cpu", True, 0)]
)
def test_a_gpu_that_torch_finds_no_way_to_is_not_passed_over_in_silence(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wanted: str,
    gpu: bool,
    said: int,
) -> None:
    monkeypatch.setattr("trainer.parallel.may_have_cuda", lambda: gpu)
    with caplog.at_level(logging.WARNING):
        assert pick_device(wanted, 0) == torch.device("cpu")
    found = [record.getMessage() for record in caplog.records]
    assert len(found) == said
    for line in found:
        assert line.startswith(f"a GPU seems to be here, but torch {torch.__version__} ")


@pytest.mark.parametrize(
    ("version", "why"), [(None, "is built without CUDA"), ("12.8", "finds no device it can use")]
)
def test_the_line_says_whether_torch_or_the_driver_is_at_fault(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    version: str | None,
    why: str,
) -> None:
    monkeypatch.setattr("trainer.parallel.may_have_cuda", lambda: True)
    monkeypatch.setattr("torch.version.hip", None)
    monkeypatch.setattr("torch.version.cuda", version)
    pick_device("auto", 0)
    assert f"{why}: on the CPU" in caplog.text
