"""sgd, sgd-m, sgd-nesterov, adam, adamw, nadam and nadamw: the kernels', or torch's own.

All trainable parameters are one group. Without Triton it is torch's fastest form: it has fused
steps for SGD and Adam on CPU and CUDA. NAdam steps by torch's foreach on CUDA; on a CPU, where
torch goes tensor by tensor, by :mod:`trainer.kernels.nadam`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trainer.kernels import choose_backend
from trainer.kernels.layout import dense
from trainer.optim.adamw import KernelAdam, KernelAdamW, KernelNAdam
from trainer.optim.clipping import SGD, Adam, AdamW, NAdam
from trainer.optim.groups import trainable
from trainer.optim.params import AdamParams, MomentumParams, NAdamParams, SgdParams

_FUSED_ON = ("cpu", "cuda")


def build_sgd(model: nn.Module, params: SgdParams) -> torch.optim.Optimizer:
    """Build sgd."""
    weights = trainable(model)
    return SGD(weights, lr=params.lr, weight_decay=params.weight_decay, fused=_fused(weights))


def build_momentum(model: nn.Module, params: MomentumParams) -> torch.optim.Optimizer:
    """Build sgd-m or sgd-nesterov; 4 bytes of state per fp32 weight."""
    weights = trainable(model)
    dampening = params.momentum if params.dampening == "momentum" else params.dampening
    return SGD(
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
    options: dict[str, Any] = {
        "lr": params.lr,
        "betas": params.betas,
        "eps": params.eps,
        "weight_decay": params.weight_decay,
    }
    if choose_backend(params.backend, weights) == "triton":
        kernel = KernelAdam if params.name == "adam" else KernelAdamW
        return kernel(weights, **options, backend="triton")
    cls = Adam if params.name == "adam" else AdamW
    return cls(weights, **options, fused=_fused(weights))


def build_nadam(model: nn.Module, params: NAdamParams) -> torch.optim.Optimizer:
    """Build nadam or nadamw; 8 bytes of state per fp32 weight.

    Raises:
        UserError: the Triton backend is asked for and cannot work.
    """
    weights = trainable(model)
    options: dict[str, Any] = {
        "lr": params.lr,
        "betas": params.betas,
        "eps": params.eps,
        "weight_decay": params.weight_decay,
        "momentum_decay": params.momentum_decay,
        "decoupled_weight_decay": not params.normalizes_decay,
    }
    if choose_backend(params.backend, weights) == "triton":
        return KernelNAdam(weights, **options, backend="triton")
    if all(weight.device.type == "cpu" for weight in weights):
        return KernelNAdam(weights, **options, backend="torch")
    return NAdam(weights, **options)


def _fused(weights: list[nn.Parameter]) -> bool | None:
    """Ask for the fused step where torch has it for all weights; None lets torch choose."""
    fits = all(w.device.type in _FUSED_ON and w.is_floating_point() and dense(w) for w in weights)
    return True if fits else None
