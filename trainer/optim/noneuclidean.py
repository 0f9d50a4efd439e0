"""muon, scion, muon-momo, muonmax-momo: steepest descent in a product norm (arXiv 2510.09827).

    m <- mu m + (1 - mu) g                     starting at the first g; in the adam norms mu = beta1
    v <- beta2 v + (1 - beta2) g^2             starting at the first g^2; in the adam norms only

    norm of a weight   dual norm d                            direction LMO
    spectral           s <m, polar(m)>, the nuclear norm      s polar(m)
    linf               |m|_1                                  sign(m)
    adam_inf           sum m^2 / (sqrt(v) + eps)              m / (sqrt(v) + eps)
    adam_2             sqrt(sum m^2 / (sqrt(v) + eps))        m / ((sqrt(v) + eps) d)

    lmo       W <- (1 - lr wd) W - tau a LMO            :mod:`trainer.optim.norms` has a and D
    not lmo   W <- (1 - lr wd) W - tau a D LMO

There is no bias correction, since the averages start at their first values. tau = lr, except where
the step is truncated: the average of the last losses' tangents, at the weights as they are,

    h = f - c + <W, m>;   f <- mu f + (1 - mu) loss;   c <- mu c + (1 - mu) <W, g>

starts at its first value and falls by a d (or a D d) per unit of tau and weight. A step ends where
it reaches the bound F*: tau = min(lr, [h - F*]+ / D), without lmo min(lr, [h - F*]+ / D^2).

Groups with a lr of their own, lr_i, have one product norm and one model of the loss. tau_i = lr_i s
with s = min(1, [h - F*]+ / sum lr_i a d (or a D d)), which for one lr is the above. All groups of
a truncated step have one mu.

nuc_approx replaces <m, polar(m)> in d by the Frobenius norm, or by its value at the step before.
A dual and its direction share one polar factor. A weight without gradient is left out of the
step's norms and model; c is kept by weight for that reason. The loss is the mean over micro-batches
and ranks. A step never waits for the device; a captured one follows lr where that is a tensor
there. A non-finite gradient or loss goes into weights and state: whoever steps looks first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainer.optim.averages import averaged, kept
from trainer.optim.batches import polar_factors
from trainer.optim.groups import split_parameters
from trainer.optim.norms import ProductNorm, over, product_norm
from trainer.optim.params import MuonMomoParams, MuonParams, ScionParams
from trainer.optim.scaling import Number, add_scaled, decay_weights
from trainer.optim.truncation import closure_loss, inner_products, truncated_step

_SHARED = "model"
"""Key of the state that belongs to no single weight."""


@dataclass(frozen=True)
class _Part:
    """A group's weights that have gradients, and where they go."""

    group: dict[str, Any]
    weights: list[Tensor]
    gradients: list[Tensor]
    means: list[Tensor]
    """m."""
    directions: list[Tensor]
    """polar(m), sign(m) or m / (sqrt(v) + eps)."""

    @property
    def spectral(self) -> bool:
        """Whether the weights are matrices."""
        return bool(self.group["norm"] == "spectral")


class SpectralDescent(torch.optim.Optimizer):
    """Groups with ``norm`` spectral, linf, adam_inf or adam_2.

    4 bytes of state per fp32 weight, in the adam norms 8.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        weight_decay: float,
        *,
        name: str = "muon",
        lmo: bool = True,
        prod_norm: ProductNorm = "linf",
        truncate_loss: float | None = None,
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        self._name, self._lmo, self._prod_norm = name, lmo, prod_norm
        self._bound = truncate_loss

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every weight that has a gradient.

        Args:
            closure: returns the loss, where the step is truncated; the gradients may be there.

        Raises:
            RuntimeError: the step is truncated and there is no loss; nothing has changed.
        """
        loss = self._loss(closure)
        parts = []
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                parts.append(self._part(group, weights))
        if parts:
            for part, factor in zip(parts, self._factors(parts, loss), strict=True):
                _move(part, factor)
        return loss

    def _loss(self, closure: Callable[[], Any] | None) -> Any:
        if self._bound is not None:
            return closure_loss(closure, self._name)
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()

    @property
    def _coupled(self) -> bool:
        """Whether a weight's step depends on the size of the momenta."""
        alone = self._lmo and self._prod_norm == "linf" and self._bound is None
        return not alone or any(group["norm"] == "adam_2" for group in self.param_groups)

    def _part(self, group: dict[str, Any], weights: list[Tensor]) -> _Part:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        means = averaged(self.state, "momentum_buffer", weights, gradients, group["momentum"])
        directions = self._directions(group, weights, gradients, means)
        return _Part(group, weights, gradients, means, directions)

    def _directions(
        self,
        group: dict[str, Any],
        weights: list[Tensor],
        gradients: list[Tensor],
        means: list[Tensor],
    ) -> list[Tensor]:
        if group["norm"] == "spectral":
            return polar_factors(means, group["polar"], group["ns_steps"], group["gptopt_compat"])
        if group["norm"] == "linf":
            return list(torch._foreach_sign(means))
        squares = list(torch._foreach_mul(gradients, gradients))
        squares = averaged(self.state, "exp_avg_sq", weights, squares, group["beta2"])
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, group["eps"])
        return list(torch._foreach_div(means, roots))

    def _factors(self, parts: list[_Part], loss: Any) -> list[Tensor | float]:
        """Return what a group's learning rate and directions are multiplied by.

        A scalar, or a vector of one for each weight.
        """
        if not self._coupled:
            return [float(part.group["scale"]) for part in parts]
        duals = [self._duals(part) for part in parts]
        total, shares = product_norm(self._prod_norm, duals, [part.spectral for part in parts])
        size: Tensor | float = 1.0
        if self._bound is not None:
            falls = [
                part.group["lr"] * (share * dual).sum()
                for part, share, dual in zip(parts, shares, duals, strict=True)
            ]
            slope = torch.stack(falls).sum()
            gap = self._height(parts, loss) - self._bound
            size = truncated_step(gap, over(slope, total) if self._lmo else slope, limit=1.0)
        factors: list[Tensor | float] = []
        for part, share, dual in zip(parts, shares, duals, strict=True):
            factor: Tensor | float = share * part.group["scale"]
            if part.group["norm"] == "adam_2":
                # d / d is left out, so that the whole group shares one factor.
                factor = 1.0 if share is dual else over(share, dual)
            factors.append(size * (over(factor, total) if self._lmo else factor))
        return factors

    def _duals(self, part: _Part) -> Tensor:
        """Return d: what a unit of the step takes from the model of the loss, weight by weight."""
        scale: float = part.group["scale"]
        approximation = part.group.get("nuc_approx", "exact")
        if approximation == "frobenius":
            return inner_products(part.means, part.means).sqrt() * scale
        inner = inner_products(part.means, part.directions)
        if approximation == "last":
            now = list(inner.unbind())
            before = kept(self.state, "nuclear_norm", part.weights, now, from_zero=False)
            inner = torch.stack(before)
            torch._foreach_copy_(before, now)
        return inner.sqrt() if part.group["norm"] == "adam_2" else inner * scale

    def _height(self, parts: list[_Part], loss: Any) -> Tensor:
        """Return h, and learn from the loss."""
        heights = []
        for part in parts:
            offsets = list(inner_products(part.weights, part.gradients).unbind())
            decay = part.group["momentum"]
            offsets = averaged(self.state, "inner_avg", part.weights, offsets, decay)
            heights.append(inner_products(part.weights, part.means).sum())
            heights.append(-torch.stack(offsets).sum())
        height = torch.stack(heights).sum()
        average = self._average(loss, height, parts[0].group["momentum"])
        return average + height

    def _average(self, loss: Any, like: Tensor, decay: float) -> Tensor:
        """Advance f, in place, so that a captured step goes on with it."""
        loss = torch.as_tensor(loss, dtype=like.dtype, device=like.device).detach()
        shared: dict[str, Any] = cast("dict[Any, Any]", self.state)[_SHARED]
        shared["loss_avg"] = shared["loss_avg"].to(loss) if shared else loss.clone()
        average: Tensor = shared["loss_avg"].lerp_(loss, 1 - decay)
        return average


def _move(part: _Part, factor: Tensor | float) -> None:
    lr: Number = part.group["lr"]
    decay_weights(part.weights, lr, part.group["weight_decay"])
    add_scaled(part.weights, part.directions, -lr * factor)


def build_spectral(model: nn.Module, params: ScionParams) -> SpectralDescent:
    """Build muon, scion, muon-momo or muonmax-momo."""
    split = split_parameters(model, params)
    matrices = {
        "params": list(split.matrices.values()),
        "norm": "spectral",
        "momentum": params.momentum,
        "scale": params.spectral_scale,
        "polar": params.polar,
        "ns_steps": params.ns_steps,
        "gptopt_compat": params.gptopt_compat,
    }
    options: dict[str, Any] = {}
    if isinstance(params, MuonMomoParams):
        matrices["nuc_approx"] = params.nuc_approx
        options = {key: getattr(params, key) for key in ("lmo", "prod_norm", "truncate_loss")}
    rest = {"params": list(split.rest.values()), **_rest_norm(params)}
    groups = [group for group in (matrices, rest) if group["params"]]
    return SpectralDescent(groups, params.lr, params.weight_decay, name=params.name, **options)


def _rest_norm(params: ScionParams) -> dict[str, Any]:
    """Return the keys of the group of everything that is no matrix."""
    norm = "adam_inf" if isinstance(params, MuonParams) else "linf"
    if isinstance(params, MuonMomoParams):
        norm = params.rest_norm
    keys: dict[str, Any] = {"norm": norm, "momentum": params.momentum, "scale": 1.0}
    if isinstance(params, MuonParams) and norm != "linf":
        beta1, beta2 = params.betas
        keys |= {"momentum": beta1, "beta2": beta2, "eps": params.eps}
    return keys
