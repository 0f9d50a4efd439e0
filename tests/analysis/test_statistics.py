"""Student's t against published tables and worked examples, and the rule for A beats B."""

from __future__ import annotations

import math

import pytest

from analysis import beats
from analysis.statistics import half_width, holm, quantile, upper_tail

A = {0: 3.00, 1: 3.10, 2: 2.95, 3: 3.05}
BETTER_BY_SEED = {seed: loss - 0.01 - 0.001 * seed for seed, loss in A.items()}


@pytest.mark.parametrize(
    ("freedom", "confidence", "published"),
    [
        # NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2.
        (1, 0.95, 12.706),
        (2, 0.95, 4.303),
        (4, 0.98, 3.747),
        (9, 0.99, 3.250),
        (30, 0.90, 1.697),
        (100, 0.998, 3.174),
        (1e9, 0.95, 1.960),
    ],
)
def test_quantiles_are_those_of_the_tables(
    freedom: float, confidence: float, published: float
) -> None:
    assert quantile(confidence, freedom) == pytest.approx(published, abs=6e-4)


@pytest.mark.parametrize("t", [-8.0, -1.0, 0.0, 0.3, 2.0, 40.0])
def test_tails_have_their_closed_forms(t: float) -> None:
    assert upper_tail(t, 1) == pytest.approx(0.5 - math.atan(t) / math.pi, rel=1e-9)
    assert upper_tail(t, 2) == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)), rel=1e-9)
    assert upper_tail(t, 3.5) + upper_tail(-t, 3.5) == pytest.approx(1)


def test_an_interval_needs_two_values() -> None:
    assert half_width(0.5, 4) == pytest.approx(3.182446 * 0.25, rel=1e-6)
    assert math.isnan(half_width(math.nan, 1))


def test_scipy_agrees_where_it_is_installed() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    mine, other = list(A.values()), [3.2, 3.15, 3.4, 3.1, 3.3]
    welch = stats.ttest_ind(mine, other, equal_var=False, alternative="less")
    verdict = beats(mine, other)
    assert (verdict.test, verdict.n_a, verdict.n_b) == ("Welch t", 4, 5)
    assert verdict.p == pytest.approx(welch.pvalue, rel=1e-9)
    sides = stats.ttest_ind(mine, other, equal_var=False).confidence_interval(0.95)
    assert (verdict.low, verdict.high) == pytest.approx(tuple(sides), rel=1e-9)
    paired = stats.ttest_rel(list(BETTER_BY_SEED.values()), mine, alternative="less")
    assert beats(BETTER_BY_SEED, A).p == pytest.approx(paired.pvalue, rel=1e-6)


def test_seeds_pair_and_see_what_their_spread_hides() -> None:
    paired, unpaired = beats(BETTER_BY_SEED, A), beats([*BETTER_BY_SEED.values()], [*A.values()])
    assert (paired.test, paired.beats) == ("paired t", True)
    assert (unpaired.test, unpaired.beats) == ("Welch t", False)
    assert paired.difference == pytest.approx(unpaired.difference) == pytest.approx(-0.0115)
    assert not beats(A, BETTER_BY_SEED).beats
    assert beats(A, BETTER_BY_SEED, lower=False).beats


def test_seeds_of_their_own_do_not_pair() -> None:
    assert beats(A, {10: 3.2, 11: 3.3}).test == "Welch t"
    assert beats(A, {0: 3.2, 11: 3.3, 12: 3.1}).test == "Welch t"
    assert beats({0: 2.9, 1: 3.09}, A).test == "paired t"


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([], [3.0, 3.1]),
        ([1.0], [3.0, 3.1]),
        ([1.0, 1.0], [2.0, 2.0]),
        ({0: 0.1, 1: 0.2}, {0: 0.3, 1: 0.4}),
    ],
)
def test_too_little_to_test_beats_nothing(a, b) -> None:
    verdict = beats(a, b)
    assert verdict.test == "none"
    assert math.isnan(verdict.p)
    assert not verdict.beats


def test_holm_multiplies_by_what_is_left_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8])[0] == 1.0
    assert [math.isnan(p) for p in holm([math.nan, 0.02])] == [True, False]
    assert holm([math.nan, 0.02])[1] == 0.02
