# ruff: noqa: N803, N806, N815 - tensor names end in their shape
"""A step's distinct second moments, in batches of one size: averaged, damped, and inverted.

Shape suffixes: K second moments, B some of them, R outputs of all layers of an input, N inputs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.optim import inverse
from trainer.optim.averages import State
from trainer.optim.cholesky import DampedInverse
from trainer.optim.gram import symmetric
from trainer.optim.moments import InputMoments, stacked_means
from trainer.optim.params import DapParams

MOMENT = "second_moment"
"""Where the state keeps a weight's averaged C: one tensor for all weights that share it."""


@dataclass(frozen=True)
class MomentBatch:
    """Second moments of one size and whose they are."""

    c_KNN: Tensor
    """In at least fp32; the upper triangles are undefined."""
    sharing: list[list[Tensor]]
    """The weights of each; those with equally many outputs together are neighbours."""


def distinct_moments(
    weights: Sequence[Tensor], moments: InputMoments, state: State, params: DapParams
) -> list[MomentBatch]:
    """Return the damped C of all weights, each once, over all ranks of a process group.

    With ``ema_beta`` the averages in ``state`` move.

    Raises:
        RuntimeError: a weight's layer saw no input.
    """
    sharing = _sharing(weights, moments, state)
    batches = []
    for c_KNN in stacked_means([moments.of(members[0]) for members in sharing]):
        own, sharing = sharing[: len(c_KNN)], sharing[len(c_KNN) :]
        if params.ema_beta:
            _average(c_KNN, own, state, params.ema_beta)
        if params.damping:
            diagonal_KN = c_KNN.diagonal(dim1=-2, dim2=-1)
            diagonal_KN.add_(params.damping * diagonal_KN.mean(-1, keepdim=True))
        batches.append(MomentBatch(c_KNN, own))
    return batches


def restore_moments(
    state: State, weights: Sequence[Tensor], saved: Sequence[Mapping[str, Any]]
) -> None:
    """Keep the averages of a checkpoint, in its precision and shared as they were.

    torch would cast them to the weights' type and copy one for each. Neighbours with equal ones
    share from now on: an older checkpoint has the same numbers for each layer of an input.
    """
    copies: dict[int, Tensor] = {}
    latest: Tensor | None = None
    for weight, values in zip(weights, saved, strict=True):
        given: Tensor | None = values.get(MOMENT)
        if given is None:
            continue
        found = copies.get(id(given))
        if found is None:
            found = given.to(weight.device)
            if latest is not None and latest.shape == found.shape and torch.equal(latest, found):
                found = latest
            copies[id(given)] = found
        latest = state[weight][MOMENT] = found


def outputs_of(sharing: Sequence[Tensor]) -> int:
    """Return the outputs of all layers that share an input, R."""
    return sum(weight.shape[0] for weight in sharing)


def inverted(c_KNN: Tensor, params: DapParams) -> Callable[[Tensor, slice], Tensor]:
    """Return a function that multiplies (B, R, N) from the right by B of the C^-1.

    The inverse is taken the way that ``accelerated`` says; under ``scalar`` it is one over the
    largest eigenvalue. C is written to.
    """
    steps, accelerated = params.ns_pinv_steps, params.accelerated
    if not (params.scalar or isinstance(accelerated, bool) or params.gptopt_compat):
        return DampedInverse(c_KNN, accelerated).applied
    c_KNN = symmetric(c_KNN)
    if params.scalar:
        largest_K = inverse.largest_eigenvalue(c_KNN, steps)
        largest_K11 = largest_K.clamp_min(torch.finfo(c_KNN.dtype).tiny)[:, None, None]
        return lambda m_BRN, which: m_BRN / largest_K11[which]
    if accelerated is False:
        inverse_KNN = inverse.newton_pinv(c_KNN, params.rcond, steps)
    else:
        add = None if accelerated is True else accelerated
        inverse_KNN = inverse.chebyshev_pinv(c_KNN, add, params.rcond, steps)
    return lambda m_BRN, which: torch.bmm(m_BRN, inverse_KNN[which])


def _sharing(weights: Sequence[Tensor], moments: InputMoments, state: State) -> list[list[Tensor]]:
    """Return the weights of each C, now and in all of the past, by its size and by outputs."""
    found: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
    for weight in weights:
        past = state[weight].get(MOMENT)
        found[id(moments.of(weight)), id(past)].append(weight)
    return sorted(found.values(), key=lambda each: (each[0].shape[1], outputs_of(each)))


def _average(c_KNN: Tensor, sharing: list[list[Tensor]], state: State, beta: float) -> None:
    """Move the averages towards C, and C to the averages."""
    for c_NN, weights in zip(c_KNN, sharing, strict=True):
        past = state[weights[0]].get(MOMENT)
        if past is None:
            new = c_NN.clone()
        else:
            # Not in place: weights that part ways here keep one past.
            new = past.lerp(c_NN.to(past.dtype), 1 - beta)
            c_NN.copy_(new)
        for weight in weights:
            state[weight][MOMENT] = new
