# ruff: noqa: N803 - Triton's compile-time constants are in capitals
# ruff: noqa: PLR1714, RET505 - Triton compiles these forms
"""What the elementwise rules make of one block of addresses: a function for each family.

``weight``, ``gradient`` and the states ``first``, ``second`` and ``third`` are blocks of pointers,
masked by ``inside`` where MASKED. ``factor`` multiplies the gradient, ``step_size`` is the rate and
``decay`` the rate times ``weight_decay``. ``weight1`` and ``weight2`` are 1 - beta1 and 1 - beta2,
of the sign rules the first is mu. ``own0`` to ``own3`` are the weight's row of ``corrections``, see
:mod:`trainer.kernels.numbers_triton`. All return three numbers, whose sums the rule may ask for.

All reads come before the first write, which the compiler would not move them across: they wait
for memory together.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def step_block(
    weight,
    gradient,
    first,
    second,
    third,
    inside,
    factor,
    step_size,
    weight_decay,
    decay,
    divisor,
    weight1,
    weight2,
    eps,
    own0,
    own1,
    own2,
    own3,
    RULE: tl.constexpr,
    PHASE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Take one phase of a rule's step."""
    g = 0.0
    if PHASE != "apply" or RULE == "sign-nesterov":
        g = _read(gradient, inside, MASKED) * factor
    if RULE == "lion" or RULE == "sign" or RULE == "sign-nesterov":
        return _sign_block(
            weight, g, first, inside, step_size, decay, weight1, weight2, RULE, PHASE, MASKED
        )
    elif RULE == "momo" or RULE == "momo-adam":
        return _momo_block(
            weight,
            g,
            first,
            second,
            inside,
            step_size,
            decay,
            divisor,
            weight2,
            eps,
            own1,
            own3,
            RULE,
            PHASE,
            MASKED,
        )
    elif RULE == "schedule-free":
        return _free_block(
            weight, g, first, second, inside, weight_decay, weight2, eps, own0, own1, own2, MASKED
        )
    elif RULE == "mars" and PHASE == "sums":
        c = _corrected(g, third, inside, own2, MASKED)
        return c * c, c * c, c * c
    else:
        return _adam_block(
            weight,
            g,
            first,
            second,
            third,
            inside,
            step_size,
            weight_decay,
            decay,
            weight1,
            weight2,
            eps,
            own0,
            own1,
            own2,
            own3,
            RULE,
            MASKED,
        )


@triton.jit
def _adam_block(
    weight,
    g,
    first,
    second,
    third,
    inside,
    step_size,
    weight_decay,
    decay,
    weight1,
    weight2,
    eps,
    mean_scale,
    root_scale,
    own2,
    own3,
    RULE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """The Adams, ademamix and mars.

    The third state is ademamix's slow average, and mars's gradient of the step before.
    """
    w = _read(weight, inside, MASKED)
    m = _read(first, inside, MASKED)
    v = _read(second, inside, MASKED)
    if RULE == "adam" or RULE == "nadam":
        g = g + weight_decay * w
    else:
        w = w - decay * w
    if RULE == "ademamix":
        slow = _moved(_read(third, inside, MASKED), g, own2)
    if RULE == "mars":
        c = own3 * _corrected(g, third, inside, own2, MASKED)
        _write(third, g, inside, MASKED)
        g = c
    m = _moved(m, g, weight1)
    v = _moved(v, g * g, weight2)
    move = mean_scale * m
    if RULE == "nadam" or RULE == "nadamw":
        move = move + own2 * g
    if RULE == "ademamix":
        move = move + own3 * slow
        _write(third, slow, inside, MASKED)
    _write(first, m, inside, MASKED)
    _write(second, v, inside, MASKED)
    _write(weight, w - step_size * move / (tl.sqrt(v) * root_scale + eps), inside, MASKED)
    return m, m, m


@triton.jit
def _corrected(g, before, inside, ahead, MASKED: tl.constexpr):
    """Return MARS's gradient before its clip."""
    return g + ahead * (g - _read(before, inside, MASKED))


@triton.jit
def _free_block(
    weight,
    g,
    base,
    second,
    inside,
    weight_decay,
    weight2,
    eps,
    base_step,
    share,
    weight_step,
    MASKED: tl.constexpr,
):
    """schedule-free: the weight is y, the first state z."""
    y = _read(weight, inside, MASKED)
    z = _read(base, inside, MASKED)
    v = _moved(_read(second, inside, MASKED), g * g, weight2)
    move = g / (tl.sqrt(v) + eps) + weight_decay * y
    _write(second, v, inside, MASKED)
    _write(weight, y + share * (z - y) - weight_step * move, inside, MASKED)
    _write(base, z - base_step * move, inside, MASKED)
    return move, move, move


@triton.jit
def _momo_block(
    weight,
    g,
    first,
    second,
    inside,
    step_size,
    decay,
    divisor,
    weight2,
    eps,
    root_scale,
    share,
    RULE: tl.constexpr,
    PHASE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """momo, and momo-adam, which divides by a root; the sums are <g, x>, <d, x> and <d, d / D>."""
    w = _read(weight, inside, MASKED)
    d = _read(first, inside, MASKED)
    if RULE == "momo-adam":
        v = _read(second, inside, MASKED)
    if PHASE == "sums":
        d = _moved(d, g, share)
        _write(first, d, inside, MASKED)
    move = d
    if RULE == "momo-adam":
        if PHASE == "sums":
            v = _moved(v, g * g, weight2)
            _write(second, v, inside, MASKED)
        move = d / (tl.sqrt(v) * root_scale + eps)
    if PHASE == "apply":
        _write(weight, (w - decay * w - step_size * move) / divisor, inside, MASKED)
    return g * w, d * w, d * move


@triton.jit
def _sign_block(
    weight,
    g,
    first,
    inside,
    step_size,
    decay,
    weight1,
    weight2,
    RULE: tl.constexpr,
    PHASE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """lion, sign and sign-nesterov, whose sum is |q|_1."""
    m = _read(first, inside, MASKED)
    if PHASE != "sums":
        w = _read(weight, inside, MASKED)
    if RULE == "lion":
        q = _moved(m, g, weight1)
        m = _moved(m, g, weight2)
    else:
        if PHASE != "apply":
            m = weight1 * m + g
        q = m
        if RULE == "sign-nesterov":
            q = g + weight1 * m
    if PHASE != "apply":
        _write(first, m, inside, MASKED)
    if PHASE != "sums":
        # As torch's, the sign of NaN is 0.
        sign = tl.where(q > 0, 1.0, tl.where(q < 0, -1.0, 0.0))
        _write(weight, w - decay * w - step_size * sign, inside, MASKED)
    return tl.abs(q), tl.abs(q), tl.abs(q)


@triton.jit
def _moved(average, value, share):
    """Return an average, moved by a share of the way to a value."""
    # (1 - share) a + share value with its factors rounded apart is no average of ones.
    return average + share * (value - average)


@triton.jit
def _read(pointer, inside, MASKED: tl.constexpr):
    if MASKED:
        return tl.load(pointer, mask=inside, other=0.0)
    else:
        return tl.load(pointer)


@triton.jit
def _write(pointer, value, inside, MASKED: tl.constexpr):
    if MASKED:
        tl.store(pointer, value, mask=inside)
    else:
        tl.store(pointer, value)
