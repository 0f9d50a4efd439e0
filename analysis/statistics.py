"""Student's t: intervals of a mean, and the rule by which one set of runs beats another.

Written out here so that reading a store needs no scipy. The distribution comes from the regularised
incomplete beta function (Abramowitz and Stegun 1964, 26.5.8 and 26.7.1), good to nine digits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

LEVEL = 0.01
"""A beats B if such a difference would come by chance less often than this: the bar that the
NanoGPT speedrun sets for a record."""
CONFIDENCE = 0.95

_TINY = 1e-300
_ROUNDING = 1e-12
_MOST_TERMS = 10_000

Values = Mapping[object, float] | Sequence[float]
"""Results by seed, or without seeds."""


@dataclass(frozen=True)
class Verdict:
    """Whether A beats B, and on what grounds."""

    test: str
    """``paired t`` where the seeds pair, else ``Welch t``; ``none`` where nothing can be tested."""
    n_a: int
    n_b: int
    """Runs of each side that the test uses."""
    difference: float
    """Mean of A minus mean of B, in the metric's unit; NaN if a side has no run."""
    low: float
    high: float
    """Two-sided interval of the difference at CONFIDENCE; NaN without a test."""
    p: float
    """One-sided: how likely a difference as good as this is if A is no better; NaN without."""
    level: float

    @property
    def beats(self) -> bool:
        """Say whether A is better than B with p below the level."""
        return self.p < self.level


def beats(a: Values, b: Values, *, level: float = LEVEL, lower: bool = True) -> Verdict:
    """Test whether A is better than B on average: one-sided, by Student's t.

    Where both are given by seed, each has each seed once, and every seed of the smaller side is
    also one of the other, the differences at the same seed are tested (a paired test, with the
    seeds that both have); otherwise Welch's test, which lets the variances differ. Either needs
    two runs a side, and some spread: runs that all came out alike say nothing of chance.

    Args:
        a: results of A by seed, or without seeds; finite.
        b: those of B.
        level: p must be less for A to beat B.
        lower: lower results are better.
    """
    seeds = _pairs(a, b)
    mine, theirs = _numbers(a, seeds), _numbers(b, seeds)
    nan = math.nan
    if not mine or not theirs:
        return Verdict("none", len(mine), len(theirs), nan, nan, nan, nan, level)
    difference = _mean(mine) - _mean(theirs)
    if min(len(mine), len(theirs)) < 2:
        return Verdict("none", len(mine), len(theirs), difference, nan, nan, nan, level)
    if seeds is not None:
        error, freedom = _paired_error(mine, theirs)
    else:
        error, freedom = _welch_error(mine, theirs)
    # Equal differences leave rounding errors, which are no spread.
    if error <= _ROUNDING * max(map(abs, [*mine, *theirs])):
        return Verdict("none", len(mine), len(theirs), difference, nan, nan, nan, level)
    p = upper_tail((-difference if lower else difference) / error, freedom)
    reach = quantile(CONFIDENCE, freedom) * error
    name = "Welch t" if seeds is None else "paired t"
    sides = difference - reach, difference + reach
    return Verdict(name, len(mine), len(theirs), difference, *sides, p, level)


def half_width(std: float, n: int, confidence: float = CONFIDENCE) -> float:
    """Return how far Student's t interval of a mean reaches to each side; NaN for n below 2.

    Args:
        std: standard deviation of the sample (divisor n - 1).
        n: values in the sample.
        confidence: share of such intervals that hold the true mean.
    """
    return quantile(confidence, n - 1) * std / math.sqrt(n) if n > 1 else math.nan


def holm(probabilities: Sequence[float]) -> list[float]:
    """Adjust p values for their number (Holm 1979); NaN is no test and stays NaN."""
    tested = sorted((p, i) for i, p in enumerate(probabilities) if not math.isnan(p))
    adjusted, floor = [math.nan] * len(probabilities), 0.0
    for place, (p, i) in enumerate(tested):
        floor = max(floor, min(1.0, (len(tested) - place) * p))
        adjusted[i] = floor
    return adjusted


@lru_cache(maxsize=1024)
def quantile(confidence: float, freedom: float) -> float:
    """Return the t within whose negative and positive lies this share of the distribution.

    Raises:
        ValueError: the share is not between 0 and 1, or the degrees of freedom are not positive.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence}; must be between 0 and 1")
    tail, high = (1 - confidence) / 2, 1.0
    while upper_tail(high, freedom) > tail:
        high *= 2
    low = 0.0
    while high - low > 1e-14 * high:
        middle = (low + high) / 2
        if middle in {low, high}:
            break
        low, high = (middle, high) if upper_tail(middle, freedom) > tail else (low, middle)
    return (low + high) / 2


def upper_tail(t: float, freedom: float) -> float:
    """Return the probability that Student's t exceeds ``t``.

    Raises:
        ValueError: the degrees of freedom are not positive.
    """
    if not freedom > 0:
        raise ValueError(f"freedom = {freedom}; must be positive")
    if math.isinf(t):
        return 0.0 if t > 0 else 1.0
    square = t * t
    share, rest = freedom / (freedom + square), square / (freedom + square)
    half = _incomplete_beta(share, rest, freedom / 2, 0.5) / 2
    return half if t > 0 else 1 - half


def _incomplete_beta(x: float, rest: float, a: float, b: float) -> float:
    """Return I_x(a, b); ``rest`` is 1 - x, given so that it does not cancel."""
    if x <= 0 or rest <= 0:
        return 0.0 if x <= 0 else 1.0
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(scale + a * math.log(x) + b * math.log(rest))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(x, a, b) / a
    return 1 - front * _fraction(rest, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    """Return the continued fraction of the incomplete beta function, by Lentz's method."""
    ratio = 1.0
    inverse = 1 / (1 - (a + b) * x / (a + 1) or _TINY)
    value = inverse
    for m in range(1, _MOST_TERMS):
        before = value
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            inverse = 1 / (1 + term * inverse or _TINY)
            ratio = 1 + term / ratio or _TINY
            value *= inverse * ratio
        if abs(value - before) <= 1e-16 * abs(value):
            break
    return value


def _pairs(a: Values, b: Values) -> list[object] | None:
    """Return the seeds to pair by, or None where the two do not pair."""
    if not isinstance(a, Mapping) or not isinstance(b, Mapping):
        return None
    common = [seed for seed in a if seed in b]
    return common if len(common) >= 2 and len(common) == min(len(a), len(b)) else None


def _numbers(values: Values, seeds: Sequence[object] | None) -> list[float]:
    if not isinstance(values, Mapping):
        return [float(value) for value in values]
    return [float(values[seed]) for seed in (values if seeds is None else seeds)]


def _paired_error(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    differences = [x - y for x, y in zip(a, b, strict=True)]
    return math.sqrt(_variance(differences) / len(differences)), len(differences) - 1


def _welch_error(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    parts = [_variance(side) / len(side) for side in (a, b)]
    total = sum(parts)
    if total == 0:
        return 0.0, 1.0
    shares = [
        (part / total) ** 2 / (len(side) - 1) for part, side in zip(parts, (a, b), strict=True)
    ]
    return math.sqrt(total), 1 / sum(shares)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
