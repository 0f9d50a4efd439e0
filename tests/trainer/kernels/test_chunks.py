from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.kernels.chunks import BLOCK, CHUNK, chunk_table


@given(st.lists(st.integers(1, 3 * CHUNK), min_size=1, max_size=5))
def test_chunks_cover_every_number_once(sizes: list[int]) -> None:
    slots = [[torch.empty(size) for _ in range(4)] for size in sizes]
    table = chunk_table(slots).tolist()
    covered = [(row[0], row[0] + 4 * row[4]) for row in table]
    whole = []
    for slot in slots:
        start = slot[0].data_ptr()
        whole += [(start, start + 4 * slot[0].numel())]
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(covered):
        if merged and merged[-1][1] == begin and begin not in {w[0] for w in whole}:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((begin, end))
    assert merged == sorted(whole)
    assert all(0 < row[4] <= CHUNK and row[5] * BLOCK <= row[4] for row in table)


def test_a_tensor_off_16_bytes_is_read_number_by_number() -> None:
    memory = torch.zeros(2 * BLOCK + 1)
    aligned = [memory[: 2 * BLOCK]] * 4
    unaligned = [memory[1:]] * 4
    assert chunk_table([aligned])[0, 5] == 2
    assert chunk_table([unaligned])[0, 5] == 0


def test_the_table_is_kept_while_the_tensors_stay() -> None:
    slots = [[torch.zeros(5) for _ in range(4)]]
    table = chunk_table(slots)
    assert chunk_table(slots) is table
    slots[0][1] = torch.zeros(5)
    assert chunk_table(slots) is not table
