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
and ranks, g the clipped gradient. A step never waits for the device; a captured one follows lr
where that is a tensor there. A non-finite gradient or loss goes into weights and state: whoever
steps looks first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from trainer.kernels import choose_backend
from trainer.kernels.adam import clipped
from trainer.kernels.chunks import Plan
from trainer.kernels.operands import Operands
from trainer.kernels.plans import MADE_BEFORE, Plans
from trainer.kernels.symmetric import Choice
from trainer.optim import launches
from trainer.optim.averages import averaged, kept
from trainer.optim.batches import polar_factors
from trainer.optim.clipping import FoldsClip
from trainer.optim.groups import split_parameters
from trainer.optim.norms import ProductNorm, over, product_norm
from trainer.optim.params import MuonMomoParams, MuonParams, ScionParams
from trainer.optim.scaling import Number, add_scaled, decay_weights
from trainer.optim.truncation import (
    Truncating,
    average_loss,
    closure_loss,
    inner_products,
    truncated_step,
)


@dataclass(frozen=True)
class _Part:
    """A group's weights that have gradients, and where they go."""

    group: dict[str, Any]
    weights: list[Tensor]
    means: list[Tensor]
    """m."""
    directions: list[Tensor]
    """polar(m), sign(m) or m / (sqrt(v) + eps)."""
    swept: launches.Swept | None = None
    """Takes the place of the directions."""

    @property
    def spectral(self) -> bool:
        """Whether the weights are matrices."""
        return bool(self.group["norm"] == "spectral")


class SpectralDescent(Truncating, FoldsClip):
    """Groups with ``norm`` spectral, linf, adam_inf or adam_2.

    4 bytes of state per fp32 weight, in the adam norms 8. With the kernels the momenta, and
    whatever moves by itself alone, take one launch a group.
    """

    OWN_TYPES: ClassVar[Mapping[str, torch.dtype | None]] = {
        "inner_avg": None,
        "nuclear_norm": None,
    }

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
        backend: Choice = "auto",
    ) -> None:
        """Take the groups as they are.

        Raises:
            UserError: the Triton backend is asked for and cannot work.
        """
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        self._name, self._lmo, self._prod_norm = name, lmo, prod_norm
        self._bound, self._choice = truncate_loss, backend
        weights = [weight for group in self.param_groups for weight in group["params"]]
        self._backend = choose_backend(backend, weights)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every weight that has a gradient.

        Args:
            closure: returns the loss, where the step is truncated; the gradients may be there.

        Raises:
            RuntimeError: the step is truncated and there is no loss, or the first step of a weight
                is captured in a CUDA graph; nothing has changed.
        """
        loss = self._loss(closure)
        clip_factor = self._take_clip_factor()
        operands = [self._operands(group, clip_factor) for group in self.param_groups]
        plan = self._plan(operands) if self._backend == "triton" else None
        parts = []
        for number, (group, those) in enumerate(zip(self.param_groups, operands, strict=True)):
            if not those.weights:
                continue
            if self._moves_alone(group):
                if plan is None:
                    launches.step_alone_torch(group, those, clip_factor)
                else:
                    launches.step_alone(group, plan, plan.parts[number], clip_factor)
                continue
            parts.append(self._part(group, those, clip_factor, plan, number))
        if parts:
            for part, factor in zip(parts, self._factors(parts, loss, clip_factor), strict=True):
                _move(part, factor)
        return loss

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the state of either backend."""
        super().load_state_dict(state_dict)
        self._plans.forget()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add weights with numbers of their own."""
        super().add_param_group(param_group)
        self._plans.forget()

    def _moves_matrices(self, group: dict[str, Any]) -> bool:
        return bool(group["norm"] == "spectral")

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

    def _moves_alone(self, group: dict[str, Any]) -> bool:
        """Whether a group's step is elementwise, and nothing but its own numbers decides on it."""
        fused = group["norm"] == "adam_inf" or (
            group["norm"] == "linf" and self._backend == "triton"
        )
        return fused and group["scale"] == 1 and not self._coupled

    def _is_swept(self, group: dict[str, Any]) -> bool:
        """Whether a truncated step moves all weights of a group in the adam norms equally far."""
        shared = {"adam_2": self._prod_norm != "linf", "adam_inf": self._prod_norm == "linf"}
        truncated = self._backend == "triton" and self._bound is not None
        return truncated and shared.get(group["norm"], False)

    def _operands(self, group: dict[str, Any], clip_factor: Tensor | None) -> Operands:
        """Return a group's weights that have gradients and their m and v, made where missing."""
        weights = [weight for weight in group["params"] if weight.grad is not None]
        gradients = [weight.grad for weight in weights]
        fresh = [weight for weight in weights if "momentum_buffer" not in self.state[weight]]
        adam = group["norm"].startswith("adam")
        if fresh:
            if fresh[0].is_cuda and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(MADE_BEFORE)
            firsts = clipped([weight.grad for weight in fresh], clip_factor)
            for weight, first in zip(fresh, firsts, strict=True):
                # Of the weight's order in memory, in which the kernels walk them together.
                mean = self.state[weight]["momentum_buffer"] = torch.empty_like(weight).copy_(first)
                if adam:
                    self.state[weight]["exp_avg_sq"] = mean * mean
        keys = ("momentum_buffer", "exp_avg_sq") if adam else ("momentum_buffer",)
        states = [[self.state[weight][key] for weight in weights] for key in keys]
        offsets = self._offsets(weights, clip_factor) if self._is_swept(group) else []
        return Operands(weights, gradients, states, scalars=offsets)

    def _offsets(self, weights: list[Tensor], clip_factor: Tensor | None) -> list[Tensor]:
        """Return c, which starts at its first value."""
        fresh = [weight for weight in weights if "inner_avg" not in self.state[weight]]
        if fresh:
            firsts = _inner_with_gradients(fresh, clip_factor)
            kept(self.state, "inner_avg", fresh, list(firsts.unbind()), from_zero=False)
        return [self.state[weight]["inner_avg"] for weight in weights]

    @property
    def _plans(self) -> Plans:
        plans: Plans = self.__dict__.setdefault("_kept_plans", Plans())
        return plans

    def _plan(self, operands: list[Operands]) -> Plan | None:
        kept: dict[Tensor, list[Tensor]] = {}
        for those in operands:
            columns = (*those.states, *([those.scalars] if those.scalars else []))
            kept |= dict(zip(those.weights, map(list, zip(*columns, strict=True)), strict=True))
        groups = [those.weights for those in operands]
        return self._plans.of(groups, lambda: operands, kept.__getitem__)

    def _part(
        self,
        group: dict[str, Any],
        operands: Operands,
        clip_factor: Tensor | None,
        plan: Plan | None,
        number: int,
    ) -> _Part:
        """Advance m, and find the directions."""
        weights, means = operands.weights, operands.states[0]
        if plan is not None and self._is_swept(group):
            swept = launches.Swept.of(group, plan, plan.parts[number], clip_factor)
            return _Part(group, weights, means, [], swept)
        if plan is not None:
            launches.advance(group, plan, plan.parts[number], clip_factor)
        else:
            gradients = clipped(operands.gradients, clip_factor)
            torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
        return _Part(group, weights, means, self._directions(group, operands, clip_factor))

    def _directions(
        self, group: dict[str, Any], operands: Operands, clip_factor: Tensor | None
    ) -> list[Tensor]:
        """Return the direction of each weight, and advance v where it is made of it."""
        means = operands.states[0]
        if group["norm"] == "spectral":
            return polar_factors(
                means, group["polar"], group["ns_steps"], group["gptopt_compat"], self._choice
            )
        if group["norm"] == "linf":
            return list(torch._foreach_sign(means))
        gradients, squares = clipped(operands.gradients, clip_factor), operands.states[1]
        torch._foreach_mul_(squares, group["beta2"])
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - group["beta2"])
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, group["eps"])
        return list(torch._foreach_div(means, roots))

    def _factors(
        self, parts: list[_Part], loss: Any, clip_factor: Tensor | None
    ) -> list[Tensor | float]:
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
            gap = self._height(parts, loss, clip_factor) - self._bound
            size = truncated_step(gap, over(slope, total) if self._lmo else slope, limit=1.0)
            self._keep_scale(size)
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
            return _norms(part.means, 2) * scale
        if part.swept is not None:
            inner = part.swept.totals[:, 2]
        elif part.group["norm"] == "linf":
            inner = _norms(part.means, 1)
        else:
            inner = inner_products(part.means, part.directions)
        if approximation == "last":
            now = list(inner.unbind())
            before = kept(self.state, "nuclear_norm", part.weights, now, from_zero=False)
            inner = torch.stack(before)
            torch._foreach_copy_(before, now)
        return inner.sqrt() if part.group["norm"] == "adam_2" else inner * scale

    def _height(self, parts: list[_Part], loss: Any, clip_factor: Tensor | None) -> Tensor:
        """Return h, and learn from the loss."""
        heights = []
        for part in parts:
            if part.swept is not None:
                totals = part.swept.totals.sum(0)
                heights += [totals[1], -totals[0]]
                continue
            found = _inner_with_gradients(part.weights, clip_factor)
            offsets, decay = list(found.unbind()), part.group["momentum"]
            offsets = averaged(self.state, "inner_avg", part.weights, offsets, decay)
            heights.append(inner_products(part.weights, part.means).sum())
            heights.append(-torch.stack(offsets).sum())
        height = torch.stack(heights).sum()
        return height + average_loss(self.state, loss, height, parts[0].group["momentum"])


def _inner_with_gradients(weights: list[Tensor], clip_factor: Tensor | None) -> Tensor:
    """Return <W, g> of each weight, a vector."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    found = inner_products(weights, gradients)
    return found if clip_factor is None else found * clip_factor


def _norms(tensors: list[Tensor], order: int) -> Tensor:
    """Return a norm of each tensor's entries, a vector, summed in at least fp32."""
    wide = torch.promote_types(tensors[0].dtype, torch.float32)
    return torch.stack(torch._foreach_norm(tensors, order, dtype=wide))


def _move(part: _Part, factor: Tensor | float) -> None:
    if part.swept is not None:
        part.swept.move(cast("Tensor", factor))
        return
    lr: Number = part.group["lr"]
    decay_weights(part.weights, lr, part.group["weight_decay"])
    add_scaled(part.weights, part.directions, -lr * factor)


def build_spectral(model: nn.Module, params: ScionParams) -> SpectralDescent:
    """Build muon, scion, muon-momo or muonmax-momo.

    Raises:
        UserError: the Triton backend is asked for and cannot work.
    """
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
    options: dict[str, Any] = {"name": params.name, "backend": params.backend}
    if isinstance(params, MuonMomoParams):
        matrices["nuc_approx"] = params.nuc_approx
        options |= {key: getattr(params, key) for key in ("lmo", "prod_norm", "truncate_loss")}
    rest = {"params": list(split.rest.values()), **_rest_norm(params)}
    groups = [group for group in (matrices, rest) if group["params"]]
    return SpectralDescent(groups, params.lr, params.weight_decay, **options)


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
