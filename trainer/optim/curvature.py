# ruff: noqa: N803, N806, N815 - tensor names end in their shape
"""A step's distinct second moments, in batches of one size: averaged, damped, and inverted.

Shape suffixes: K second moments, B some of them, R outputs of all layers of an input, N inputs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, groupby
from typing import Any, NamedTuple

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
    """The weights of each; those with the same outputs are neighbours."""

    @cached_property
    def alike(self) -> list[slice]:
        """Which second moments' weights have the same outputs, run by run."""
        lengths = [len(list(run)) for _, run in groupby(self.sharing, _outputs)]
        ends = accumulate(lengths)
        return [slice(end - length, end) for length, end in zip(lengths, ends, strict=True)]

    @property
    def weights(self) -> list[Tensor]:
        """All weights, in the order of :meth:`stacks`."""
        return list(chain.from_iterable(self.sharing))

    def stacks(self) -> list[Stack]:
        """Return room for a matrix of each weight, a stack for each run of ``alike``."""
        stacks = []
        for which in self.alike:
            outputs = _outputs(self.sharing[which.start])
            count, size = which.stop - which.start, self.c_KNN.shape[-1]
            m_BRN = self.c_KNN.new_empty(count, sum(outputs), size)
            stacks.append(Stack(m_BRN, which, outputs))
        return stacks


class Stack(NamedTuple):
    """Matrices of weights, those of one input below each other."""

    m_BRN: Tensor
    which: slice
    """Of the batch's second moments."""
    outputs: tuple[int, ...]
    """Rows of each weight of an input."""

    def parts(self) -> list[Tensor]:
        """Return each weight's rows, input by input."""
        by_outputs = torch.split_with_sizes(self.m_BRN, self.outputs, dim=1)
        by_input = zip(*(part.unbind() for part in by_outputs), strict=True)
        return list(chain.from_iterable(by_input))

    def solved(self, solve: Callable[[Tensor, slice], Tensor]) -> list[Tensor]:
        """Return each weight's rows of what ``solve`` makes of them."""
        return self._replace(m_BRN=solve(self.m_BRN, self.which)).parts()


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
    return sorted(found.values(), key=lambda each: (each[0].shape[1], _outputs(each)))


def _outputs(sharing: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(weight.shape[0] for weight in sharing)


def _average(c_KNN: Tensor, sharing: list[list[Tensor]], state: State, beta: float) -> None:
    """Move the averages towards C, and C to the averages.

    Raises:
        RuntimeError: a step is captured that would make averages anew at each replay.
    """
    holders = Counter(id(kept[MOMENT]) for kept in state.values() if MOMENT in kept)
    moving: list[tuple[Tensor, Tensor]] = []
    for c_NN, weights in zip(c_KNN.unbind(), sharing, strict=True):
        past = state[weights[0]].get(MOMENT)
        if past is not None and holders[id(past)] == len(weights):
            moving.append((past, c_NN))
            continue
        if c_NN.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "a captured step can't start averages of second moments, nor part those of layers "
                "that shared their inputs so far: take a step like it before capturing one"
            )
        # Not in place: weights that part ways here keep one past.
        new = c_NN.clone() if past is None else past.clone()
        if past is not None:
            moving.append((new, c_NN))
        for weight in weights:
            state[weight][MOMENT] = new
    if moving:
        averages, now = map(list, zip(*moving, strict=True))
        latest = [c_NN.to(average.dtype) for average, c_NN in moving]
        torch._foreach_lerp_(averages, latest, 1 - beta)
        torch._foreach_copy_(now, averages)
