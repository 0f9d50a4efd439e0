"""Sixteen million tokens of a real text in many shards: a dictionary of English.

Fetched by install.sh beside this file.
"""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from trainer import prepare
from trainer.data.batches import TrainingOrder
from trainer.data.manifest import TRAINING, VALIDATION, prepared
from trainer.data.prefetch import Prefetched
from trainer.data.shards import TokenShards
from trainer.data.tokenizers import END_OF_TEXT, Gpt2Tokenizer

ROOT = Path(__file__).resolve().parents[2]
TEXT = ROOT / ".corpus" / "gcide.dict.dz"
ENTRIES, FILES = 64, 4
"""Entries of the dictionary that make a document, and files that the documents lie in."""
CONTEXT, BATCH = 1024, 16


@pytest.fixture(scope="module")
def text() -> str:
    if not TEXT.exists():
        reason = f"{TEXT.relative_to(ROOT)} is not here; tests/corpus/install.sh fetches it"
        pytest.skip(reason)
    return gzip.decompress(TEXT.read_bytes()).decode("utf-8", errors="replace")


def test_sixteen_million_tokens_through_shards_and_back(text: str, tmp_path: Path) -> None:
    entries = text.split("\n\n")
    whole = ["\n\n".join(entries[at : at + ENTRIES]) for at in range(0, len(entries), ENTRIES)]
    share = -(-len(whole) // FILES)
    for number in range(FILES):
        table = pa.table({"text": whole[number * share : (number + 1) * share]})
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=200)
    size = ("--val-tokens", "500000", "--shard-tokens", "2000000", "--workers", "2")
    out = tmp_path / "shards"
    files = [str(path) for path in sorted(tmp_path.glob("*.parquet"))]
    assert prepare.main(["finewebmini", *size, "--out", str(out), "--source", *files]) == 0
    manifest = prepared("finewebmini", out)
    assert len(manifest.of(TRAINING)) == 8
    assert manifest.total(TRAINING) + manifest.total(VALIDATION) > 15_000_000
    assert sum(shard.documents for shard in manifest.shards) == len(whole)

    tracemalloc.start()
    train = TokenShards(out, manifest, TRAINING)
    validation = TokenShards(out, manifest, VALIDATION)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1_000_000, "the tokens were loaded, not mapped"

    tokens = np.empty((1, len(validation) + len(train)), dtype=np.uint16)
    validation.read(np.array([0]), tokens[:, : len(validation)])
    train.read(np.array([0]), tokens[:, len(validation) :])
    assert "".join(decoded(tokens[0])) == "".join(whole)

    order = TrainingOrder(train, CONTEXT, seed=1)
    windows = (len(train) - CONTEXT) // CONTEXT
    steps = windows // BATCH
    batches = Prefetched(lambda step: order.micro_batches(step, BATCH, BATCH), steps)
    read = torch.cat([x[:, 0] for step in range(steps) for x, _ in batches.micro_batches(step)])
    firsts = np.bincount(read.numpy(), minlength=50257)
    offset = int(order._starts(0, windows).min())
    here = tokens[0, len(validation) :]
    expected = np.bincount(here[offset : offset + windows * CONTEXT : CONTEXT], minlength=50257)
    missing = expected - firsts
    assert (missing >= 0).all()
    assert missing.sum() == windows - steps * BATCH  # what is left of the pass for the next step


def decoded(tokens: np.ndarray[tuple[int, ...], np.dtype[np.uint16]]) -> list[str]:
    """Return the texts of the documents."""
    starts = np.flatnonzero(tokens == END_OF_TEXT)
    encoding = Gpt2Tokenizer()._encoding
    ends = [*starts[1:].tolist(), len(tokens)]
    return [
        encoding.decode(tokens[at + 1 : end].tolist())
        for at, end in zip(starts.tolist(), ends, strict=True)
    ]
