"""Batches for a GPU come out of pinned memory, and are those that a CPU gets."""

from __future__ import annotations

import numpy as np
import torch

from trainer import TrainConfig, TrainingParams
from trainer.data.prefetch import training_batches

STEPS = 6
PARAMS = TrainingParams(tokens_processed=512, batch_size=4, context_length=32, max_steps=STEPS)


def test_prefetched_batches_are_pinned_and_the_same(cuda: torch.device) -> None:
    tokens = np.random.default_rng(0).integers(256, size=20_000).astype(np.uint8)
    config = TrainConfig(training=PARAMS)
    ahead = training_batches(tokens, config, STEPS, cuda).micro_batches
    plain = training_batches(tokens, config, STEPS, torch.device("cpu")).micro_batches
    for step in range(STEPS):
        pairs = list(zip(ahead(step), plain(step), strict=True))
        assert len(pairs) == 4
        for mine, theirs in pairs:
            for part, expected in zip(mine, theirs, strict=True):
                assert part.is_pinned()
                assert part.is_contiguous()
                moved = part.to(cuda, non_blocking=True)
                assert torch.equal(moved.cpu(), expected)
