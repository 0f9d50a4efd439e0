"""Learning-rate schedules: pure functions of the step, without torch.

``step`` counts the optimizer steps already done, so the first update uses step 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from rundir.errors import require, unknown

WSD_DECAY_FRACTION = 0.2
"""Part of the run over which ``wsd`` decays, unless the name gives another, as in ``wsd_0.1``."""

_FLOOR = 0.1
"""What ``constant-linear`` decays to."""


def lr_factor(schedule: str, step: int, total_steps: int, warm_up_fraction: float) -> float:
    """Return what the initial learning rate is multiplied by at this step.

    ========================  ============================================================
    constant                  1
    linear                    1 / (step + 1)
    sqrt                      1 / sqrt(step + 1)
    exponential_K_G           G ** (step // K), e.g. ``exponential_60_0.5``
    constant-linear           1 for the warm-up fraction (flat, despite its name), then a
                              straight line towards 0 that stays at 0.1
    warm-up-cosine            a straight line from 0 over the warm-up fraction, then half a
                              cosine to 0
    wsd, wsd_D                a straight line from 0 over the warm-up fraction, 1, then a
                              straight line to 0 over the last part D (0.2) of the run
    ========================  ============================================================

    Args:
        schedule: a name from the table.
        step: optimizer steps already done; at least 0.
        total_steps: steps of the whole run.
        warm_up_fraction: in [0, 1]; ``floor(fraction * total_steps)`` steps.

    Raises:
        UserError: there is no such schedule, or its numbers make no sense.
    """
    name, arguments = parse_schedule(schedule)
    warm_up = int(warm_up_fraction * total_steps)
    return _SHAPES[name](step, total_steps, warm_up, arguments)


def parse_schedule(schedule: str) -> tuple[str, tuple[float, ...]]:
    """Split a schedule's name from its numbers: ``exponential_60_0.5`` has (60, 0.5).

    Raises:
        UserError: there is no such schedule, or its numbers make no sense.
    """
    name, *texts = schedule.split("_")
    try:
        arguments = tuple(float(text) for text in texts)
    except ValueError:
        raise unknown("lr_schedule", schedule, _SPELLINGS) from None
    if name not in _SHAPES:
        raise unknown("lr_schedule", schedule, _SPELLINGS)
    fits, must = _NUMBERS.get(name, (_none_given, f"{name}, which takes no number"))
    require(fits(arguments), "lr_schedule", schedule, must)
    return name, arguments


def _none_given(arguments: tuple[float, ...]) -> bool:
    return not arguments


def _fits_exponential(arguments: tuple[float, ...]) -> bool:
    if len(arguments) != 2 or not all(map(math.isfinite, arguments)):
        return False
    return arguments[0] >= 1 and arguments[0] == int(arguments[0]) and 0 < arguments[1] <= 1


def _fits_wsd(arguments: tuple[float, ...]) -> bool:
    return not arguments or (len(arguments) == 1 and 0 < arguments[0] <= 1)


_NUMBERS: dict[str, tuple[Callable[[tuple[float, ...]], bool], str]] = {
    "exponential": (
        _fits_exponential,
        "exponential_K_G, K a whole number of steps and G a factor in (0, 1]",
    ),
    "wsd": (_fits_wsd, "wsd or wsd_D, D a part of the run in (0, 1]"),
}
"""Schedules that take numbers: which ones, by a check and in words."""


def _constant(_step: int, _total: int, _warm_up: int, _arguments: tuple[float, ...]) -> float:
    return 1.0


def _linear(step: int, _total: int, _warm_up: int, _arguments: tuple[float, ...]) -> float:
    return 1 / (step + 1)


def _sqrt(step: int, _total: int, _warm_up: int, _arguments: tuple[float, ...]) -> float:
    return 1 / math.sqrt(step + 1)


def _exponential(step: int, _total: int, _warm_up: int, arguments: tuple[float, ...]) -> float:
    every, factor = arguments
    return float(factor ** (step // int(every)))


def _constant_linear(step: int, total: int, flat: int, _arguments: tuple[float, ...]) -> float:
    if step < flat:
        return 1.0
    return max(_FLOOR, 1 - (step - flat) / max(1, total - flat))


def _warm_up_cosine(step: int, total: int, warm_up: int, _arguments: tuple[float, ...]) -> float:
    if step < warm_up:
        return step / warm_up
    progress = min(1.0, (step - warm_up) / max(1, total - warm_up))
    return 0.5 * (1 + math.cos(math.pi * progress))


def _wsd(step: int, total: int, warm_up: int, arguments: tuple[float, ...]) -> float:
    decay = int((arguments[0] if arguments else WSD_DECAY_FRACTION) * total)
    rising = step / warm_up if step < warm_up else 1.0
    falling = max(0, total - step) / decay if decay and step > total - decay else 1.0
    return min(rising, falling)


_SHAPES: dict[str, Callable[[int, int, int, tuple[float, ...]], float]] = {
    "constant": _constant,
    "linear": _linear,
    "sqrt": _sqrt,
    "exponential": _exponential,
    "constant-linear": _constant_linear,
    "warm-up-cosine": _warm_up_cosine,
    "wsd": _wsd,
}

_SPELLINGS = (
    "constant",
    "linear",
    "sqrt",
    "exponential_K_G",
    "constant-linear",
    "warm-up-cosine",
    "wsd",
    "wsd_D",
)
