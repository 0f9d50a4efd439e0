# ruff: noqa: N803, N806 - tensor names end in their shape
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

A non-finite gradient goes into the state: whoever steps looks first.

Shape suffixes: K second moments, B those of them with equally many outputs, R these, N inputs.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from typing import Any

import torch
from torch import Tensor, nn

from trainer.kernels import AdamWScalars, adamw_step, choose_backend
from trainer.kernels.layout import laid_out_alike
from trainer.kernels.operands import Slot
from trainer.optim import inverse
from trainer.optim.averages import kept
from trainer.optim.clipping import FoldsClip
from trainer.optim.curvature import (
    MomentBatch,
    distinct_moments,
    inverted,
    outputs_of,
    restore_moments,
)
from trainer.optim.groups import split_parameters
from trainer.optim.moments import InputMoments
from trainer.optim.momentum import advance_momentum
from trainer.optim.params import DapParams
from trainer.optim.precision import full_precision

UPDATE_RMS = 0.2
"""Root mean square of a matrix's update under ``update_norm``."""

_log = logging.getLogger(__name__)


class Dap(FoldsClip):
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
        shared = {"lr": params.lr, "weight_decay": params.weight_decay, "preconditioned": False}
        super().__init__([group for group in groups if group["params"]], shared)
        self._moments = moments
        self._params = params
        weights = chain.from_iterable(group["params"] for group in self.param_groups)
        self._backend = choose_backend(params.backend, weights)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every weight that has a gradient, from the inputs seen since the last step.

        Raises:
            RuntimeError: a layer has a gradient but saw no input in training mode.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        clip_factor = self._take_clip_factor()
        matrices: list[Tensor] = []
        for group in self.param_groups:
            for weights in self._by_step(group["params"], advance=True).values():
                if group["preconditioned"]:
                    matrices += weights
                else:
                    self._step_rest(group, weights, clip_factor)
        if matrices:
            with full_precision(matrices[0].device):
                self._step_matrices(matrices, clip_factor)
        self.forget_inputs()
        return loss

    def forget_inputs(self) -> None:
        """Drop the inputs seen since the last step, as where their own step is skipped."""
        self._moments.reset()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state of this class, also of versions that kept a second moment per weight."""
        super().load_state_dict(dict(state_dict))
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        weights = chain.from_iterable(group["params"] for group in self.param_groups)
        states = [state_dict["state"].get(number, {}) for number in saved]
        restore_moments(self.state, list(weights), states)

    def _step_matrices(self, matrices: list[Tensor], clip_factor: Tensor | None) -> None:
        began = self._now(matrices)
        if self._params.disable_preconditioning:
            batches = []
            updates = {weight: torch.empty_like(weight) for weight in matrices}
            advance_momentum(
                self.state, matrices, list(updates.values()), self._params, clip_factor
            )
        else:
            batches = distinct_moments(matrices, self._moments, self.state, self._params)
            updates = {}
        gathered = self._now(matrices)
        for batch in batches:
            updates.update(self._preconditioned(batch, clip_factor))
        solved = self._now(matrices)
        for group in self.param_groups:
            if group["preconditioned"]:
                for weights in self._by_step(group["params"]).values():
                    self._update(group, weights, [updates[weight] for weight in weights])
        if self._params.debug_timing:
            parts = (gathered - began, solved - gathered, self._now(matrices) - solved)
            text = "second moments {:.2f} ms, momentum and inverse {:.2f} ms, update {:.2f} ms"
            spent = text.format(*(1e3 * part for part in parts))
            distinct = sum(len(batch.sharing) for batch in batches)
            _log.info("dap: %d matrices, %d second moments: %s", len(matrices), distinct, spent)

    def _preconditioned(
        self, batch: MomentBatch, clip_factor: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Advance the momentum; return each weight with N C^-1."""
        solved = inverted(batch.c_KNN, self._params)
        first = 0
        for outputs, neighbours in groupby(batch.sharing, outputs_of):
            members = list(neighbours)
            which = slice(first, first + len(members))
            first = which.stop
            m_BRN = batch.c_KNN.new_empty(len(members), outputs, batch.c_KNN.shape[-1])
            weights = list(chain.from_iterable(members))
            parts = _parts(m_BRN, members)
            advance_momentum(self.state, weights, parts, self._params, clip_factor)
            yield from zip(weights, _parts(solved(m_BRN, which), members), strict=True)

    def _update(self, group: dict[str, Any], weights: list[Tensor], updates: list[Tensor]) -> None:
        """Decay weights that have made equally many steps, and move them by what U becomes."""
        p, lr = self._params, group["lr"]
        updates = list(map(laid_out_alike, weights, updates))
        if p.dap_beta2 and not (p.update_opnorm or p.update_norm):
            # AdamW that has U for its gradient and averages only the squares.
            squares = self._state(weights, "exp_avg_sq")
            slots = list(map(Slot, weights, updates, updates, squares))
            scalars = self._scalars(group, weights[0], (0.0, p.dap_beta2), p.dap_eps)
            adamw_step(slots, scalars, self._backend)
            return
        if p.dap_beta2:
            torch._foreach_div_(updates, self._roots(weights, updates))
        if p.update_opnorm:
            _divide(updates, self._largest_singular_values(updates))
        elif p.update_norm:
            norms = list(torch._foreach_norm(updates))
            torch._foreach_div_(norms, [UPDATE_RMS * u.numel() ** 0.5 for u in updates])
            _divide(updates, norms)
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
        torch._foreach_add_(weights, updates, alpha=-lr)

    def _roots(self, weights: list[Tensor], updates: list[Tensor]) -> list[Tensor]:
        """Advance the averaged squares and return what each entry of U is divided by."""
        beta, step = self._params.dap_beta2, self.state[weights[0]]["step"]
        squares = self._state(weights, "exp_avg_sq")
        torch._foreach_mul_(squares, beta)
        torch._foreach_addcmul_(squares, updates, updates, 1 - beta)
        roots = list(torch._foreach_sqrt(squares))
        torch._foreach_mul_(roots, (1 - beta**step) ** -0.5)
        torch._foreach_add_(roots, self._params.dap_eps)
        return roots

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
        means, squares = self._state(weights, "exp_avg"), self._state(weights, "exp_avg_sq")
        slots = list(map(Slot, weights, gradients, means, squares))
        scalars = self._scalars(group, weights[0], self._params.betas, self._params.eps)
        adamw_step(slots, scalars, self._backend, clip_factor)

    def _scalars(
        self, group: dict[str, Any], weight: Tensor, betas: tuple[float, float], eps: float
    ) -> AdamWScalars:
        step: int = self.state[weight]["step"]
        return AdamWScalars(group["lr"], *betas, eps, group["weight_decay"], step)

    def _by_step(
        self, weights: Sequence[Tensor], *, advance: bool = False
    ) -> dict[int, list[Tensor]]:
        """Return the weights that have a gradient by how many steps they have made."""
        found: dict[int, list[Tensor]] = defaultdict(list)
        for weight in weights:
            if weight.grad is not None:
                state = self.state[weight]
                state["step"] = state.get("step", 0) + advance
                found[state["step"]].append(weight)
        return found

    def _state(self, weights: list[Tensor], key: str) -> list[Tensor]:
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


def _parts(stack_BRN: Tensor, members: list[list[Tensor]]) -> list[Tensor]:
    """Return each weight's rows of a stack that holds those of one input below each other."""
    return [
        part
        for rows_RN, weights in zip(stack_BRN, members, strict=True)
        for part in rows_RN.split([weight.shape[0] for weight in weights])
    ]


def _divide(updates: list[Tensor], norms: Sequence[Tensor]) -> None:
    smallest = torch.finfo(updates[0].dtype).tiny
    torch._foreach_div_(updates, [norm.clamp_min(smallest) for norm in norms])
