"""The keyed permutation is one, for every size, and mixes."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.data.shuffle import KeyedPermutation


def permuted(n: int, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    random = np.random.Generator(np.random.Philox(seed))
    return KeyedPermutation(n, random)(np.arange(n))


@pytest.mark.parametrize("n", [*range(1, 70), 1000, 4096, 4097, 65_535, 2**17 + 1])
def test_every_index_comes_once(n: int) -> None:
    for seed in range(3):
        assert np.array_equal(np.sort(permuted(n, seed)), np.arange(n))


def test_it_is_a_function_of_its_key_and_takes_any_shape_and_order() -> None:
    first = permuted(1000, 7)
    assert np.array_equal(first, permuted(1000, 7))
    assert not np.array_equal(first, permuted(1000, 8))
    shuffled = KeyedPermutation(1000, np.random.Generator(np.random.Philox(7)))
    some = np.array([[999, 3], [3, 500]])
    assert np.array_equal(shuffled(some), first[some])


@pytest.mark.parametrize("n", [5, 24, 60])
def test_every_place_is_equally_likely(n: int) -> None:
    """Chi-squared of where the first and the last index go under 40 n keys."""
    ends = np.array([0, n - 1])
    keys = [np.random.Generator(np.random.Philox(key)) for key in range(40 * n)]
    places = np.array([KeyedPermutation(n, key)(ends) for key in keys])
    for column in places.T:
        chi2 = ((np.bincount(column, minlength=n) - 40) ** 2 / 40).sum()
        assert chi2 < (n - 1) + 5 * np.sqrt(2 * (n - 1)) + 12, chi2


def test_neighbours_part() -> None:
    """Ranks of neighbours are uncorrelated, as are those at a distance of a power of two."""
    n = 100_003
    order = permuted(n, 1).astype(float)
    for lag in (1, 2, 3, 256, 1024):
        correlation = np.corrcoef(order[:-lag], order[lag:])[0, 1]
        assert abs(correlation) < 5 / np.sqrt(n), lag
    assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 5 / np.sqrt(n)
    # Of a random permutation one step in n goes to the neighbour, and one point in n stays.
    assert (np.abs(np.diff(order)) == 1).sum() < 15
    assert (order == np.arange(n)).sum() < 10


def test_ten_billion_windows_take_no_memory() -> None:
    n = 10**10
    some = np.arange(10**10 - 5000, 10**10)
    found = KeyedPermutation(n, np.random.Generator(np.random.Philox(0)))(some)
    assert len(np.unique(found)) == 5000
    assert found.min() >= 0
    assert found.max() < n
    assert abs(found.mean() / n - 0.5) < 0.03
