"""What data costs: tokens a second of preparing and of reading shards, beside what people write.

Preparing: documents of Parquet through ``datasets``, GPT-2's tokens, hashed shards; the peer hands
single documents to a ``multiprocessing`` pool. Reading: random windows; the peer cuts them one by
one from a memory map and stacks them.

    python benchmarks/data.py [--copies 24]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from report import Report, workplace

from trainer.data.documents import Source, documents, files_source
from trainer.data.headers import HEADER_BYTES
from trainer.data.manifest import TRAINING, Manifest, Position
from trainer.data.preparation import Preparation
from trainer.data.shards import TOKEN, TokenShards
from trainer.data.sources import TOKENIZER_HASHES
from trainer.data.tokenizers import Gpt2Tokenizer
from trainer.data.tokenizing import Tokenized, tokenized

TURNS = 3
DOCUMENT = 4000
"""Bytes of a document, about what the web's have."""
CONTEXT, BATCH = 1024, 16
SCALING, NEEDED = 1.3, 1e6
"""Two workers over one; tokens a second that the quickest model here, gpt-small on one large GPU,
could ask for."""

_peer: Gpt2Tokenizer | None = None


def written(place: Path, copies: int) -> Source:
    """Write so many copies of the embedded plays as documents, and return them as a source."""
    from trainer.data.corpus import load_shakespeare

    text = load_shakespeare()
    pieces = [text[at : at + DOCUMENT] for at in range(0, len(text), DOCUMENT)] * copies
    path = place / "plays.parquet"
    pq.write_table(pa.table({"text": pieces}), path, row_group_size=1000)
    return files_source([str(path)], "text")


class Bench:
    """Prepares one source again and again."""

    def __init__(self, place: Path, source: Source) -> None:
        self.place, self.source, self.number = place, source, 0

    def prepared(self, workers: int) -> tuple[Path, Manifest, float]:
        """Prepare; return where, what, and the seconds from the first token to the last."""
        self.number += 1
        directory = self.place / str(self.number)
        directory.mkdir()
        digest = TOKENIZER_HASHES["gpt2"]
        wanted = Manifest("finewebmini", "gpt2", digest, 50257, self.source, 10**9, 10**5, 10**8)
        began = 0.0

        def stream_from(position: Position) -> Iterator[Tokenized]:
            return tokenized(documents(self.source, position.state), workers, None)

        def tell(_shard: object, _tokens: int) -> None:
            nonlocal began
            began = began or time.perf_counter()

        made = Preparation(directory, wanted, stream_from, tell).make()
        return directory, made, time.perf_counter() - began

    def by_pool(self, workers: int) -> float:
        """Return the seconds that the peer takes from the first document to the last."""
        texts = pq.read_table(self.source["files"][0][0])["text"].to_pylist()
        with multiprocessing.get_context("spawn").Pool(workers, _begin_peer) as pool:
            found = pool.imap(_tokens_by_peer, texts, chunksize=16)
            parts = [next(found)]
            began = time.perf_counter()
            parts += list(found)
            np.concatenate(parts).tofile(self.place / "peer.bin")
            return time.perf_counter() - began


def _begin_peer() -> None:
    global _peer  # noqa: PLW0603 - a worker has one tokenizer
    _peer = Gpt2Tokenizer()


def _tokens_by_peer(text: str) -> NDArray[np.uint16]:
    assert _peer is not None  # noqa: S101 - the pool's initializer has run
    return np.concatenate([np.array([50256], dtype=np.uint16), _peer.encode(text)])


def seconds_of(work: Callable[[], object]) -> float:
    """Return the median wall time of 5 calls, after one that is not kept."""
    work()
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return median(taken)


def measure_preparing(report: Report, bench: Bench) -> tuple[Path, Manifest]:
    """Measure one worker, two, and the peer with two, in turns; return what was prepared."""
    taken: dict[str, list[float]] = {"one": [], "two": [], "peer": []}
    for _ in range(TURNS):
        taken["one"].append(bench.prepared(1)[2])
        directory, made, two = bench.prepared(2)
        taken["two"].append(two)
        taken["peer"].append(bench.by_pool(2))
    tokens = sum(shard.tokens for shard in made.shards)
    for name, said in (
        ("one", "prepare, one worker: tokens/s"),
        ("two", "prepare, two workers: tokens/s"),
        ("peer", "peer, two workers, no headers, hashes or progress: tokens/s"),
    ):
        report.add(f"prepare_{name}", tokens / median(taken[name]), f"{said}; median of {TURNS}")
    pairs = [a / b for a, b in zip(taken["one"], taken["two"], strict=True)]
    cores = len(os.sched_getaffinity(0))
    report.add(
        "two_workers_ratio",
        median(pairs),
        f"two workers over one, in turns, {cores} cores for them and the reading process",
        least=SCALING if cores >= 2 else None,
    )
    peers = [a / b for a, b in zip(taken["peer"], taken["two"], strict=True)]
    told = "two workers over the peer's two; headers, hashes, fsync and Parquet included"
    report.add("prepare_ratio", median(peers), told, least=0.8)
    return directory, made


def measure_reading(report: Report, directory: Path, manifest: Manifest) -> None:
    """Measure random windows: ours, ahead on a thread, and the peer's."""
    import torch  # here, so that the tokenizing processes start without it

    from trainer.data.batches import TrainingOrder
    from trainer.data.prefetch import Prefetched

    torch.set_num_threads(1)
    tokens = TokenShards(directory, manifest, TRAINING)
    order = TrainingOrder(tokens, CONTEXT, seed=0)
    steps = 200
    count = steps * BATCH * CONTEXT
    joined = np.concatenate(
        [np.memmap(directory / s.file, TOKEN, "r", HEADER_BYTES) for s in manifest.of(TRAINING)]
    )

    def ours() -> None:
        for step in range(steps):
            for _ in order.micro_batches(step, BATCH, BATCH):
                pass

    def ahead() -> None:
        batches = Prefetched(lambda step: order.micro_batches(step, BATCH, BATCH), steps)
        for step in range(steps):
            for _ in batches.micro_batches(step):
                pass

    def peer() -> None:
        for _ in range(steps):
            at = torch.randint(len(joined) - CONTEXT, (BATCH,)).tolist()
            rows = [torch.from_numpy(joined[i : i + CONTEXT + 1].astype(np.int64)) for i in at]
            torch.stack([row[:-1] for row in rows])
            torch.stack([row[1:] for row in rows])

    sides = {"read": ours, "read_ahead": ahead, "peer_read": peer}
    speed = {name: count / seconds_of(work) for name, work in sides.items()}
    shape = f"windows of {CONTEXT}, {BATCH} a batch: tokens/s; median of 5"
    report.add("read", speed["read"], shape, least=100 * NEEDED)
    report.add("read_ahead", speed["read_ahead"], f"by way of the prefetching thread; {shape}")
    report.add("peer_read", speed["peer_read"], f"peer: one by one, stacked; {shape}")
    report.add("read_ratio", speed["read"] / speed["peer_read"], "ours over the peer's", least=1.0)


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--copies", type=int, default=24, help="of the plays: 360,000 tokens each")
    chosen = parser.parse_args()
    report = Report("data")
    with workplace() as place:
        directory, made = measure_preparing(report, Bench(place, written(place, chosen.copies)))
        measure_reading(report, directory, made)
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
