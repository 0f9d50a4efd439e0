from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rundir import UserError
from trainer.optim import lr_factor


def curve(schedule: str, total: int, fraction: float) -> list[float]:
    return [lr_factor(schedule, step, total, fraction) for step in range(total)]


def test_constant_linear_is_flat_then_falls_to_a_tenth() -> None:
    assert curve("constant-linear", 10, 0.5) == pytest.approx(
        [1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]
    )
    assert lr_factor("constant-linear", 99, 100, 0.0) == 0.1


def test_warm_up_cosine_rises_then_falls_as_a_cosine() -> None:
    half = math.sqrt(0.5)
    expected = [0, 0.25, 0.5, 0.75, 1, (1 + half) / 2, 0.5, (1 - half) / 2]
    assert curve("warm-up-cosine", 8, 0.5) == pytest.approx(expected)
    assert lr_factor("warm-up-cosine", 8, 8, 0.5) == pytest.approx(0)


def test_wsd_rises_stays_and_falls() -> None:
    assert curve("wsd", 10, 0.2) == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 1, 1, 0.5])
    assert curve("wsd_0.5", 4, 0.0) == pytest.approx([1, 1, 1, 0.5])


def test_constant_linear_in_the_step_sqrt_and_exponential() -> None:
    assert curve("constant", 3, 0.4) == [1, 1, 1]
    assert curve("linear", 4, 0.4) == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert curve("sqrt", 3, 0.4) == pytest.approx([1, 2**-0.5, 3**-0.5])
    assert curve("exponential_2_0.5", 6, 0.4) == pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.25])


SCHEDULES = ["constant", "linear", "sqrt", "exponential_3_0.9", "constant-linear"]


@given(
    st.sampled_from([*SCHEDULES, "warm-up-cosine", "wsd", "wsd_1"]),
    st.integers(1, 500),
    st.floats(0, 1),
)
def test_every_schedule_stays_between_0_and_1_and_past_the_end(
    schedule: str, total: int, fraction: float
) -> None:
    for step in {0, total // 2, total - 1, total, total + 5}:
        assert 0 <= lr_factor(schedule, step, total, fraction) <= 1


@pytest.mark.parametrize("schedule", ["cosine", "wsd_x", "exponential_60_"])
def test_an_unknown_schedule_is_refused(schedule: str) -> None:
    with pytest.raises(UserError, match=f"unknown lr_schedule {schedule}; must be one of: const"):
        lr_factor(schedule, 0, 10, 0.1)


@pytest.mark.parametrize(
    ("schedule", "must"),
    [
        ("exponential", "exponential_K_G, K a whole number of steps"),
        ("exponential_0_1", "exponential_K_G"),
        ("exponential_2.5_1", "exponential_K_G"),
        ("exponential_nan_1", "exponential_K_G"),
        ("exponential_1_0", "exponential_K_G"),
        ("exponential_1_10", r"exponential_K_G, .* and G a factor in \(0, 1\]$"),
        ("exponential_60_1.01", "exponential_K_G"),
        ("wsd_0", "wsd or wsd_D, D a part of the run"),
        ("sqrt_2", "sqrt, which takes no number"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(schedule: str, must: str) -> None:
    with pytest.raises(UserError, match=f"lr_schedule = '{schedule}'; must be {must}"):
        lr_factor(schedule, 0, 10, 0.1)
