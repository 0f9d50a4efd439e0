"""DAP's momentum: NAdam's first moment, or a heavy ball."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.optim.averages import State, kept
from trainer.optim.params import DapParams
from trainer.optim.scaling import Number, add_scaled, each


def advance_momentum(
    state: State,
    weights: list[Tensor],
    out: list[Tensor],
    params: DapParams,
    step: Number,
    clip_factor: Tensor | None = None,
) -> None:
    """Advance the momentum of weights with a gradient and write what a step is made of to ``out``.

    Args:
        state: the momentum is kept here.
        weights: they may have made different numbers of steps.
        out: of the weights' shapes; may have a wider type.
        params: decay, and whether it looks ahead.
        step: counted from 1; on the device it may be one for each weight.
        clip_factor: scalar that multiplies every gradient; None is 1. The gradients themselves are
            left alone.
    """
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    if clip_factor is not None:
        gradients = list(torch._foreach_mul(gradients, clip_factor))
    if params.dap_beta1:
        _advance_average(state, weights, gradients, out, params, step)
    elif params.momentum:
        buffers = kept(state, "momentum_buffer", weights, weights, from_zero=True)
        torch._foreach_mul_(buffers, params.momentum)
        torch._foreach_add_(buffers, gradients)
        torch._foreach_copy_(out, buffers)
        if params.nesterov:
            torch._foreach_mul_(out, params.momentum)
            torch._foreach_add_(out, gradients)
    else:
        torch._foreach_copy_(out, gradients)


def _advance_average(
    state: State,
    weights: list[Tensor],
    gradients: list[Tensor],
    out: list[Tensor],
    params: DapParams,
    step: Number,
) -> None:
    beta = params.dap_beta1
    averages = kept(state, "exp_avg", weights, weights, from_zero=True)
    torch._foreach_lerp_(averages, gradients, 1 - beta)
    torch._foreach_copy_(out, averages)
    if not params.nesterov:
        torch._foreach_mul_(out, each(1 / (1 - beta**step), out))
        return
    torch._foreach_mul_(out, each(beta / (1 - beta ** (step + 1)), out))
    add_scaled(out, gradients, (1 - beta) / (1 - beta**step))
