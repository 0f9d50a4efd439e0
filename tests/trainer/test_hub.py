"""Streaming from a hub: by the real client, from a server on this machine."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.data.headers import HEADER_BYTES
from trainer.data.manifest import Manifest
from trainer.data.tokenizers import Gpt2Tokenizer

ROOT = Path(__file__).resolve().parents[2]
OLD, NEW = "1" * 40, "2" * 40
CARD = b"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*
- config_name: sample-10BT
  data_files:
  - split: train
    path: sample/10BT/*
---
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("hub", Path(__file__).with_name("hub.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hub"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["hub"]


def parquet(texts: list[str]) -> bytes:
    buffer = io.BytesIO()
    urls = ["somewhere"] * len(texts)
    pq.write_table(pa.table({"text": texts, "url": urls}), buffer, row_group_size=20)
    return buffer.getvalue()


def prepare(address: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    ours = {"PYTHONPATH": path, "HF_ENDPOINT": address, "HF_HOME": str(home / "hf")}
    # A developer's own settings would lead the client elsewhere.
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k}
    command = [sys.executable, "-m", "trainer.prepare", *arguments, "--workers", "0"]
    return subprocess.run(
        [*command, "--out", str(home / "out")],
        env={**kept, **ours},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def tokens_in(directory: Path) -> list[int]:
    files = sorted(directory.glob("*.bin"), key=lambda path: path.stem[-6:])
    parts = [np.fromfile(file, "<u2", offset=HEADER_BYTES) for file in files]
    return [int(token) for token in np.concatenate(parts)]


def test_fineweb_is_streamed_at_the_revision_that_it_was_begun_with(
    hub: ModuleType, tmp_path: Path
) -> None:
    texts = [f"document {number}" for number in range(200)]
    files = {
        "README.md": CARD,
        "data/all.parquet": parquet(["another configuration"]),
        "sample/10BT/000.parquet": parquet(texts[:100]),
        "sample/10BT/001.parquet": parquet(texts[100:]),
    }
    size = ("--tokens", "350", "--val-tokens", "50", "--shard-tokens", "100")
    with hub.running("HuggingFaceFW/fineweb", files, OLD) as fineweb:
        done = prepare(fineweb.address, tmp_path, "fineweb1B", *size)
        assert done.returncode == 0, done.stderr
        expected = Gpt2Tokenizer().encode_documents(texts)[:400].tolist()
        assert tokens_in(tmp_path / "out") == expected
        manifest = Manifest.read(tmp_path / "out")
        assert manifest is not None
        assert manifest.source == {
            "repo": "HuggingFaceFW/fineweb",
            "config": "sample-10BT",
            "revision": OLD,
            "column": "text",
        }
        assert "HuggingFaceFW/fineweb sample-10BT at 11111111" in done.stderr

        fineweb.revision = NEW
        fineweb.asked.clear()
        (tmp_path / "out" / "train_000003.bin").unlink()
        done = prepare(fineweb.address, tmp_path, "fineweb1B")
        assert done.returncode == 0, done.stderr
        assert tokens_in(tmp_path / "out") == expected
        assert any(f"/resolve/{OLD}/" in path for path in fineweb.asked)
        assert not any(f"/resolve/{NEW}/" in path for path in fineweb.asked)


def test_slim_pajama_is_streamed_from_its_packed_lines(hub: ModuleType, tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard", reason="the extra [data] is not installed")
    texts = [f"page {number}" for number in range(40)]
    meta = {"redpajama_set_name": "RedPajamaC4"}
    lines = [json.dumps({"text": text, "meta": meta}) + "\n" for text in texts]
    packed = zstandard.compress("".join(lines).encode())
    unwanted = zstandard.compress(b'{"text": "no", "meta": {"redpajama_set_name": "x"}}\n')
    files = {
        "README.md": b"---\nlicense: other\n---\n",
        "train/chunk1/example_train_0.jsonl.zst": packed,
        "validation/chunk1/example_holdout_0.jsonl.zst": unwanted,
        "test/chunk1/example_holdout_1.jsonl.zst": unwanted,
    }
    with hub.running("cerebras/SlimPajama-627B", files, OLD) as pajama:
        size = ("--tokens", "1000", "--val-tokens", "10")
        done = prepare(pajama.address, tmp_path, "slim_pajama1B", *size)
    assert done.returncode == 0, done.stderr
    assert tokens_in(tmp_path / "out") == Gpt2Tokenizer().encode_documents(texts).tolist()


def test_too_little_room_is_told_before_anything_is_fetched(
    hub: ModuleType, tmp_path: Path
) -> None:
    with hub.running("HuggingFaceFW/fineweb", {"README.md": CARD}, OLD) as fineweb:
        done = prepare(fineweb.address, tmp_path, "fineweb10B", "--tokens", str(10**15))
        assert not any("/resolve/" in path for path in fineweb.asked)
    assert done.returncode == 2
    assert f"error: {tmp_path / 'out'} has " in done.stderr
    assert " free; must have 2,000,000.20 GB; give another --out, or fewer --tokens" in done.stderr
    assert not (tmp_path / "out").exists()
