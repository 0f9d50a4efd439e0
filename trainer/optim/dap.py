# ruff: noqa: N806 - tensor names end in their shape
"""dap-ns-nadam, dap-ns-nadam-accel: right-preconditioning by the inputs' inverse second moment.

For the weight W (out x in) of a linear layer with inputs X (N x in), gradient G and step t:

    C = X^T X / N over the step's micro-batches; b C + (1 - b) C_new with ``ema_beta`` b;
        plus damping (tr C / in) I
    M <- b1 M + (1 - b1) G
    N = b1 M / (1 - b1^(t+1)) + (1 - b1) G / (1 - b1^t)   (M / (1 - b1^t) without nesterov)
    U = N C^-1
    V <- b2 V + (1 - b2) U^2;   O = U / (sqrt(V) / sqrt(1 - b2^t) + eps)
    W <- (1 - lr wd) W - lr O

With b1 = 0 the momentum is a heavy ball, B <- mu B + G, and N = G + mu B (B without nesterov). With
b2 = 0, O = U. Everything that is no linear layer's matrix moves by AdamW.

Weights whose layers see the same inputs have one C and are solved for together.

A non-finite gradient goes into the state: whoever steps looks first. A step never waits for the
device. A CUDA graph can capture it together with all forward passes whose inputs it needs, after an
eager step like it; it counts as it is replayed, and follows lr where that is a tensor.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from trainer.kernels import AdamWScalars, adamw_step, choose_backend
from trainer.kernels.layout import laid_out_alike
from trainer.kernels.operands import Slot
from trainer.kernels.plans import Plans
from trainer.optim import inverse
from trainer.optim.averages import kept, unbiased_roots
from trainer.optim.counted import CountsSteps
from trainer.optim.curvature import MomentBatch, distinct_moments, inverted, restore_moments
from trainer.optim.groups import split_parameters
from trainer.optim.moments import InputMoments
from trainer.optim.momentum import advance_momentum
from trainer.optim.params import DapParams
from trainer.optim.precision import full_precision
from trainer.optim.scaling import add_scaled, decay_weights

UPDATE_RMS = 0.2
"""Root mean square of a matrix's update under ``update_norm``."""

_PLANS = 32
"""Updates are new tensors at each step: they have more places than gradients."""

_Part = tuple[dict[str, Any], list[Tensor]]
"""A group and its weights that have gradients."""

_log = logging.getLogger(__name__)


class Dap(CountsSteps):
    """DAP on the matrices, AdamW on the rest.

    State per fp32 weight of a matrix: 8 bytes, and with ema_beta 4 in^2 per distinct input.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], moments: InputMoments, params: DapParams
    ) -> None:
        """Take the groups as they are.

        Args:
            groups: each with ``params`` and ``preconditioned``, which is whether they are matrices
                that ``moments`` watches the layers of; ``lr`` and ``weight_decay`` are the
                parameters' where a group has none of its own.
            moments: of the matrices' inputs.
            params: for all groups.

        Raises:
            UserError: the backend that ``params`` asks for cannot work here.
        """
        used = [{"preconditioned": False, **group} for group in groups if group["params"]]
        super().__init__(used, params.lr, params.weight_decay)
        self._moments = moments
        self._params = params
        self._plans = Plans(_PLANS)
        weights = chain.from_iterable(group["params"] for group in self.param_groups)
        self._backend = choose_backend(params.backend, weights)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every weight that has a gradient, from the inputs seen since the last step.

        Raises:
            RuntimeError: a layer has a gradient but saw no input in training mode; or the first
                step of a weight is captured in a CUDA graph, or one whose inputs are not. Nothing
                has changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        clip_factor = self._take_clip_factor()
        matrices: list[_Part] = []
        for group, weights in self._parts():
            for batch in self._batches(weights):
                self._add("step", batch, 1.0)
            if group["preconditioned"]:
                matrices.append((group, weights))
            else:
                self._step_rest(group, weights, clip_factor)
        if matrices:
            with full_precision(matrices[0][1][0].device):
                self._step_matrices(matrices, clip_factor)
        self.forget()
        return loss

    def _moves_matrices(self, group: dict[str, Any]) -> bool:
        return bool(group["preconditioned"])

    def _parts(self) -> list[_Part]:
        """Return what the step moves, once nothing can refuse it any more."""
        parts: list[_Part] = []
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            parts.append((group, weights))
            self._look_where_to_count(group, weights)
            if group["preconditioned"] and not self._params.disable_preconditioning:
                for weight in weights:
                    self._moments.of(weight)
        return parts

    def forget(self) -> None:
        """Drop the clip and the inputs seen since the last step."""
        super().forget()
        self._moments.reset()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state of this class, also of versions that kept a second moment per weight."""
        super().load_state_dict(state_dict)
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        weights = chain.from_iterable(group["params"] for group in self.param_groups)
        states = [state_dict["state"].get(number, {}) for number in saved]
        restore_moments(self.state, list(weights), states)

    def _step_matrices(self, parts: list[_Part], clip_factor: Tensor | None) -> None:
        matrices = [weight for _, weights in parts for weight in weights]
        began = self._now(matrices)
        batches = []
        if not self._params.disable_preconditioning:
            batches = distinct_moments(matrices, self._moments, self.state, self._params)
        gathered = self._now(matrices)
        updates = self._updates(matrices, batches, clip_factor)
        solved = self._now(matrices)
        for group, weights in parts:
            self._update(group, weights, [updates[weight] for weight in weights])
        if self._params.debug_timing:
            spent = (gathered - began, solved - gathered, self._now(matrices) - solved)
            text = "second moments {:.2f} ms, momentum and inverse {:.2f} ms, update {:.2f} ms"
            said = text.format(*(1e3 * part for part in spent))
            distinct = sum(len(batch.sharing) for batch in batches)
            _log.info("dap: %d matrices, %d second moments: %s", len(matrices), distinct, said)

    def _updates(
        self, matrices: list[Tensor], batches: list[MomentBatch], clip_factor: Tensor | None
    ) -> dict[Tensor, Tensor]:
        """Advance the momentum; return each weight with N C^-1, or N without second moments."""
        p = self._params
        weights = [weight for batch in batches for weight in batch.weights] or matrices
        stacks = [stack for batch in batches for stack in batch.stacks()]
        parts = [part for stack in stacks for part in stack.parts()]
        parts = parts or [torch.empty_like(weight) for weight in weights]
        advance_momentum(self.state, weights, parts, p, self._latest(weights), clip_factor)
        if stacks:
            # Views: no momentum is to outlive the update that is made of it.
            parts.clear()
            stacks.reverse()
            for batch in batches:
                solved = inverted(batch.c_KNN, p)
                for _ in batch.alike:
                    parts += stacks.pop().solved(solved)
        return dict(zip(weights, parts, strict=True))

    def _update(self, group: dict[str, Any], weights: list[Tensor], updates: list[Tensor]) -> None:
        """Decay the weights, and move them by what U becomes."""
        p, lr = self._params, group["lr"]
        updates = list(map(laid_out_alike, weights, updates))
        if p.dap_beta2 and not (p.update_opnorm or p.update_norm):
            # AdamW that has U for its gradient and averages only the squares.
            squares = self._kept(weights, "exp_avg_sq")
            slots = list(map(Slot, weights, updates, updates, squares))
            scalars = self._scalars(group, weights, (0.0, p.dap_beta2), p.dap_eps)
            adamw_step(slots, scalars, self._backend, plans=self._plans)
            return
        if p.dap_beta2:
            torch._foreach_div_(updates, self._roots(weights, updates))
        if p.update_opnorm:
            _divide(updates, self._largest_singular_values(updates))
        elif p.update_norm:
            norms = list(torch._foreach_norm(updates))
            torch._foreach_div_(norms, [UPDATE_RMS * u.numel() ** 0.5 for u in updates])
            _divide(updates, norms)
        decay_weights(weights, lr, group["weight_decay"])
        add_scaled(weights, updates, -lr)

    def _roots(self, weights: list[Tensor], updates: list[Tensor]) -> list[Tensor]:
        """Advance the averaged squares and return what each entry of U is divided by."""
        beta = self._params.dap_beta2
        squares = self._kept(weights, "exp_avg_sq")
        torch._foreach_mul_(squares, beta)
        torch._foreach_addcmul_(squares, updates, updates, 1 - beta)
        return unbiased_roots(squares, beta, self._latest(weights), self._params.dap_eps)

    def _largest_singular_values(self, updates: list[Tensor]) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        by_shape: dict[torch.Size, list[int]] = defaultdict(list)
        for index, update in enumerate(updates):
            by_shape[update.shape].append(index)
        for indices in by_shape.values():
            stack_BMN = torch.stack([updates[i] for i in indices])
            norm_B = inverse.largest_singular_value(stack_BMN, self._params.ns_pinv_steps)
            found.update(zip(indices, norm_B.unbind(), strict=True))
        return [found[index] for index in range(len(updates))]

    def _step_rest(
        self, group: dict[str, Any], weights: list[Tensor], clip_factor: Tensor | None
    ) -> None:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        means, squares = self._kept(weights, "exp_avg"), self._kept(weights, "exp_avg_sq")
        slots = list(map(Slot, weights, gradients, means, squares))
        scalars = self._scalars(group, weights, self._params.betas, self._params.eps)
        adamw_step(slots, scalars, self._backend, clip_factor, self._plans)

    def _scalars(
        self, group: dict[str, Any], weights: list[Tensor], betas: tuple[float, float], eps: float
    ) -> AdamWScalars:
        return AdamWScalars(group["lr"], *betas, eps, group["weight_decay"], self._latest(weights))

    def _kept(self, weights: list[Tensor], key: str) -> list[Tensor]:
        """Return the tensors kept under ``key``; they start at zero."""
        return kept(self.state, key, weights, weights, from_zero=True)

    def _now(self, weights: list[Tensor]) -> float:
        """Return the time; under debug_timing once the device has done its work."""
        if self._params.debug_timing and weights[0].is_cuda:
            torch.cuda.synchronize(weights[0].device)
        return time.perf_counter()


def build_dap(model: nn.Module, params: DapParams) -> Dap:
    """Build DAP; the model's linear layers get hooks that look at their inputs in training mode."""
    split = split_parameters(model, params)
    moments = InputMoments(params.xtx_subsample, whole=params.mb_subsampling)
    if not params.disable_preconditioning:
        wanted = set(split.matrices.values())
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.weight in wanted:
                moments.watch(module)
    groups = [
        {"params": list(split.matrices.values()), "preconditioned": True},
        {"params": list(split.rest.values()), "preconditioned": False},
    ]
    return Dap(groups, moments, params)


def _divide(updates: list[Tensor], norms: Sequence[Tensor]) -> None:
    smallest = torch.finfo(updates[0].dtype).tiny
    torch._foreach_div_(updates, [norm.clamp_min(smallest) for norm in norms])
