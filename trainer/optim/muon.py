# ruff: noqa: N806 - tensor names end in their shape
"""muon-torch and normuon: Muon as torch.optim has it, and with rows of one size over time.

    B <- mu B + (1 - mu) g                     starting at 0
    u = (1 - mu) g + mu B with nesterov, else B;   O = polar(u), rows x columns

    muon-torch   W <- (1 - lr wd) W - lr max(1, rows / columns)^1/2 O
                 match_rms_adamw:   - lr 0.2 max(rows, columns)^1/2 O      (arXiv 2502.16982)
    normuon      v <- beta2 v + (1 - beta2) mean of O^2 over each row, starting at 0
                 N = O / (sqrt(v) + eps)
                 W <- (1 - lr wd) W - lr 0.2 N / rms(N)                    (arXiv 2510.05491)

lr is the matrices'; everything else moves by torch's fused AdamW, with bias correction, at its own.
lr may be a tensor on the device, which a captured step follows.
polar: jordan divides u by its Frobenius norm alone, as torch does, however small it is; torch does
not divide by less than 1e-7. A step never waits for the device, and counts AdamW's steps there, so
that a captured one goes on counting. A non-finite gradient goes into the state: whoever steps looks
first.

Shape suffixes: B matrices of one shape, M rows, N columns.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainer.kernels import AdamWScalars, adamw_step, choose_backend
from trainer.kernels.adam import clipped
from trainer.kernels.operands import Slot
from trainer.kernels.symmetric import Choice
from trainer.optim.averages import averaged, kept, kept_scalars
from trainer.optim.batches import polar_factors
from trainer.optim.clipping import FoldsClip
from trainer.optim.groups import split_parameters, trainable
from trainer.optim.params import MuonTorchParams, NorMuonParams
from trainer.optim.scaling import add_scaled, decay_weights

ADAMW_RMS = 0.2
"""Root mean square of an AdamW update, roughly (arXiv 2502.16982)."""


class Muon(FoldsClip):
    """Groups with ``norm`` spectral or adamw: 4 or 8 bytes of state per fp32 weight."""

    OWN_TYPES: ClassVar[Mapping[str, torch.dtype | None]] = {"step": torch.float32}

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        weight_decay: float,
        backend: Choice = "auto",
    ) -> None:
        """Take the groups as they are; ``backend`` is of the polar factors' products on CUDA."""
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        self._choice = backend

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        clip_factor = self._take_clip_factor()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights and group["norm"] == "spectral":
                self._step_matrices(group, weights, clip_factor)
            elif weights:
                self._step_rest(group, weights, clip_factor)
        return loss

    def _moves_matrices(self, group: dict[str, Any]) -> bool:
        return bool(group["norm"] == "spectral")

    def _step_matrices(
        self, group: dict[str, Any], weights: list[Tensor], clip_factor: Tensor | None
    ) -> None:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        gradients = clipped(gradients, clip_factor)
        momentum = group["momentum"]
        momenta = averaged(
            self.state, "momentum_buffer", weights, gradients, momentum, from_zero=True
        )
        if group["nesterov"]:
            if clip_factor is None:
                momenta = list(torch._foreach_lerp(gradients, momenta, momentum))
            else:  # they are a copy that nothing else needs
                torch._foreach_lerp_(gradients, momenta, momentum)
                momenta = gradients
        factors = polar_factors(momenta, group["polar"], group["ns_steps"], False, self._choice)
        updates = self._updates(group, weights, factors)
        decay_weights(weights, group["lr"], group["weight_decay"])
        add_scaled(weights, updates, -group["lr"])

    def _updates(
        self, group: dict[str, Any], weights: list[Tensor], factors: list[Tensor]
    ) -> list[Tensor]:
        """Return what the weights move by at a learning rate of 1."""
        sizes = [learning_rate_factor(group["adjust_lr_fn"], w.shape) for w in weights]
        if any(size != 1 for size in sizes):
            torch._foreach_mul_(factors, sizes)
        return factors

    def _step_rest(
        self, group: dict[str, Any], weights: list[Tensor], clip_factor: Tensor | None
    ) -> None:
        steps = kept_scalars(self.state, "step", weights)
        torch._foreach_add_(steps, 1)
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        means = kept(self.state, "exp_avg", weights, weights, from_zero=True)
        squares = kept(self.state, "exp_avg_sq", weights, weights, from_zero=True)
        slots = list(map(Slot, weights, gradients, means, squares))
        (beta1, beta2), decay = group["betas"], group["weight_decay"]
        count = torch.stack(steps)
        scalars = AdamWScalars(group["lr"], beta1, beta2, group["eps"], decay, count)
        adamw_step(slots, scalars, "torch", clip_factor)


class NorMuon(Muon):
    """NorMuon: another 4 bytes of state per row."""

    def _updates(
        self, group: dict[str, Any], weights: list[Tensor], factors: list[Tensor]
    ) -> list[Tensor]:
        batches: dict[torch.Size, list[int]] = defaultdict(list)
        for i, weight in enumerate(weights):
            batches[weight.shape].append(i)
        updates = list(factors)
        for indices in batches.values():
            batch = [weights[i] for i in indices]
            o_BMN = torch.stack([factors[i] for i in indices])
            squares = list(o_BMN.square().mean(-1, keepdim=True).unbind())
            v = averaged(self.state, "row_moment", batch, squares, group["beta2"], from_zero=True)
            n_BMN = o_BMN / torch.stack(v).sqrt_().add_(group["eps"])
            rms_B11 = n_BMN.square().mean((-2, -1), keepdim=True).sqrt_()
            n_BMN *= ADAMW_RMS / rms_B11.clamp_min(torch.finfo(rms_B11.dtype).tiny)
            for i, update in zip(indices, n_BMN.unbind(), strict=True):
                updates[i] = update
        return updates


def learning_rate_factor(rule: str, shape: torch.Size) -> float:
    """Return what torch.optim.Muon multiplies the learning rate of a matrix by."""
    rows, columns = shape
    if rule == "match_rms_adamw":
        return ADAMW_RMS * math.sqrt(max(rows, columns))
    return math.sqrt(max(1, rows / columns))


def build_muon(model: nn.Module, params: MuonTorchParams | NorMuonParams) -> Muon:
    """Build muon-torch or normuon.

    Raises:
        UserError: the Triton backend is asked for and cannot work.
    """
    split = split_parameters(model, params)
    matrices: dict[str, Any] = {
        "params": list(split.matrices.values()),
        "norm": "spectral",
        "lr": params.lr * params.matrix_scale,
        "momentum": params.momentum,
        "nesterov": params.nesterov,
        "polar": "jordan-torch" if params.polar == "jordan" else params.polar,
        "ns_steps": params.ns_steps,
    }
    rest = {
        "params": list(split.rest.values()),
        "norm": "adamw",
        "betas": params.betas,
        "eps": params.eps,
    }
    if isinstance(params, NorMuonParams):
        matrices |= {"beta2": params.beta2, "eps": params.eps}
    else:
        matrices["adjust_lr_fn"] = params.adjust_lr_fn
    groups = [group for group in (matrices, rest) if group["params"]]
    kind = NorMuon if isinstance(params, NorMuonParams) else Muon
    choose_backend(params.backend, trainable(model))
    return kind(groups, params.lr, params.weight_decay, params.backend)
