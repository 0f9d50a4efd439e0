"""sgd, sgd-m, sgd-nesterov, adam, adamw, nadam and nadamw: torch's own, in their fastest form.

All trainable parameters are one group. torch has fused steps for SGD and Adam on CPU and CUDA;
NAdam steps by foreach on CUDA and tensor by tensor on a CPU.
"""

from __future__ import annotations

import torch
from torch import nn

from trainer.kernels import choose_backend
from trainer.optim.adamw import KernelAdamW
from trainer.optim.groups import trainable
from trainer.optim.params import AdamParams, MomentumParams, NAdamParams, SgdParams

_FUSED_ON = ("cpu", "cuda")


def build_sgd(model: nn.Module, params: SgdParams) -> torch.optim.Optimizer:
    """Build sgd."""
    weights = trainable(model)
    return torch.optim.SGD(
        weights, lr=params.lr, weight_decay=params.weight_decay, fused=_fused(weights)
    )


def build_momentum(model: nn.Module, params: MomentumParams) -> torch.optim.Optimizer:
    """Build sgd-m or sgd-nesterov; 4 bytes of state per fp32 weight."""
    weights = trainable(model)
    dampening = params.momentum if params.dampening == "momentum" else params.dampening
    return torch.optim.SGD(
        weights,
        lr=params.lr,
        momentum=params.momentum,
        dampening=float(dampening),
        weight_decay=params.weight_decay,
        nesterov=params.name == "sgd-nesterov",
        fused=_fused(weights),
    )


def build_adam(model: nn.Module, params: AdamParams) -> torch.optim.Optimizer:
    """Build adam or adamw; 8 bytes of state per fp32 weight.

    Raises:
        UserError: the Triton backend is asked for and cannot work.
    """
    weights = trainable(model)
    if params.name == "adam":
        return torch.optim.Adam(
            weights,
            lr=params.lr,
            betas=params.betas,
            eps=params.eps,
            weight_decay=params.weight_decay,
            fused=_fused(weights),
        )
    if choose_backend(params.backend, weights) == "triton":
        return KernelAdamW(
            weights,
            lr=params.lr,
            betas=params.betas,
            eps=params.eps,
            weight_decay=params.weight_decay,
            backend="triton",
        )
    return torch.optim.AdamW(
        weights,
        lr=params.lr,
        betas=params.betas,
        eps=params.eps,
        weight_decay=params.weight_decay,
        fused=_fused(weights),
    )


def build_nadam(model: nn.Module, params: NAdamParams) -> torch.optim.Optimizer:
    """Build nadam or nadamw; 8 bytes of state per fp32 weight."""
    return torch.optim.NAdam(
        trainable(model),
        lr=params.lr,
        betas=params.betas,
        eps=params.eps,
        weight_decay=params.weight_decay,
        momentum_decay=params.momentum_decay,
        decoupled_weight_decay=params.name == "nadamw",
    )


def _fused(weights: list[nn.Parameter]) -> bool | None:
    """Ask for the fused step where torch has it for all weights; None lets torch choose."""
    fits = all(w.device.type in _FUSED_ON and w.is_floating_point() for w in weights)
    return True if fits else None
