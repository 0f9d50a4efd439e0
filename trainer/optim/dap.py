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

A non-finite gradient goes into the state: whoever steps looks first.

Shape suffixes: B layers of one shape, M outputs, N inputs.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trainer.kernels import AdamWScalars, adamw_step
from trainer.kernels.operands import Slot
from trainer.optim import inverse
from trainer.optim.averages import kept
from trainer.optim.groups import split_parameters
from trainer.optim.moments import InputMoment
from trainer.optim.params import DapParams

UPDATE_RMS = 0.2
"""Root mean square of a matrix's update under ``update_norm``."""

_log = logging.getLogger(__name__)


class Dap(torch.optim.Optimizer):
    """DAP on the matrices, AdamW on the rest.

    State per fp32 weight of a matrix: 8 bytes, and 4 in^2 per layer (twice that with ema_beta).
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        rest: list[nn.Parameter],
        moments: dict[Tensor, InputMoment],
        params: DapParams,
    ) -> None:
        groups: list[dict[str, Any]] = [
            {"params": matrices, "preconditioned": True},
            {"params": rest, "preconditioned": False},
        ]
        super().__init__(
            [group for group in groups if group["params"]],
            {"lr": params.lr, "weight_decay": params.weight_decay},
        )
        self._moments = moments
        self._params = params

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
        for group in self.param_groups:
            batches: dict[tuple[int, torch.Size], list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    state = self.state[weight]
                    state["step"] = state.get("step", 0) + 1
                    shape = weight.shape if group["preconditioned"] else torch.Size()
                    batches[state["step"], shape].append(weight)
            for (step, _), weights in batches.items():
                if group["preconditioned"]:
                    self._step_matrices(group, weights, step)
                else:
                    self._step_rest(group, weights, step)
        self.forget_inputs()
        return loss

    def forget_inputs(self) -> None:
        """Drop the inputs seen since the last step, as where their own step is skipped."""
        for moment in self._moments.values():
            moment.reset()

    def _step_matrices(self, group: dict[str, Any], weights: list[Tensor], step: int) -> None:
        """Update matrices of one shape that have made equally many steps."""
        began = time.perf_counter()
        c_BNN = None if self._params.disable_preconditioning else self._second_moments(weights)
        gathered = self._now(weights)
        m_BMN = self._momentum(weights, step)
        u_BMN = m_BMN if c_BNN is None else self._preconditioned(m_BMN, c_BNN)
        solved = self._now(weights)
        o_BMN = self._sized(self._normalized(weights, u_BMN, step))
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        updates = list(o_BMN.to(weights[0].dtype).unbind())
        torch._foreach_add_(weights, updates, alpha=-group["lr"])
        if self._params.debug_timing:
            parts = (gathered - began, solved - gathered, self._now(weights) - solved)
            shape = "x".join(map(str, weights[0].shape))
            spent = "second moment {:.2f} ms, inverse {:.2f} ms, update {:.2f} ms".format(
                *(1e3 * part for part in parts)
            )
            _log.info("dap step %d, %d of %s: %s", step, len(weights), shape, spent)

    def _second_moments(self, weights: list[Tensor]) -> Tensor:
        """Return the damped C of each layer, (B, N, N), in at least fp32."""
        beta, damping = self._params.ema_beta, self._params.damping
        found = [self._moments[weight].mean() for weight in weights]
        if beta:
            for i, weight in enumerate(weights):
                state = self.state[weight]
                previous = state.setdefault("second_moment", found[i].clone())
                found[i] = previous.lerp_(found[i].to(previous.dtype), 1 - beta)
        c_BNN = torch.stack(found)
        if damping:
            mean_B1 = c_BNN.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
            c_BNN.diagonal(dim1=-2, dim2=-1).add_(damping * mean_B1)
        return c_BNN

    def _momentum(self, weights: list[Tensor], step: int) -> Tensor:
        """Advance the momentum and return what the step is made of, (B, M, N)."""
        beta, mu = self._params.dap_beta1, self._params.momentum
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        g_BMN = torch.stack(gradients)
        if not beta and not mu:
            return g_BMN
        buffers = self._state(weights, "exp_avg" if beta else "momentum_buffer")
        if beta:
            torch._foreach_lerp_(buffers, gradients, 1 - beta)
        else:
            torch._foreach_mul_(buffers, mu)
            torch._foreach_add_(buffers, gradients)
        m_BMN = torch.stack(buffers)
        if not beta:
            return g_BMN.add_(m_BMN, alpha=mu) if self._params.nesterov else m_BMN
        if not self._params.nesterov:
            return m_BMN / (1 - beta**step)
        ahead, now = beta / (1 - beta ** (step + 1)), (1 - beta) / (1 - beta**step)
        return m_BMN.mul_(ahead).add_(g_BMN, alpha=now)

    def _preconditioned(self, m_BMN: Tensor, c_BNN: Tensor) -> Tensor:
        """Return N C^-1 the way that ``accelerated`` says, or N over C's largest eigenvalue."""
        p = self._params
        m_BMN = m_BMN.to(c_BNN.dtype)
        if p.scalar:
            largest_B = inverse.largest_eigenvalue(c_BNN, p.ns_pinv_steps)
            return m_BMN / largest_B.clamp_min(torch.finfo(c_BNN.dtype).tiny)[:, None, None]
        if p.accelerated is True:
            return torch.bmm(m_BMN, inverse.chebyshev_pinv(c_BNN, None, p.rcond, p.ns_pinv_steps))
        if p.accelerated is False:
            return torch.bmm(m_BMN, inverse.newton_pinv(c_BNN, p.rcond, p.ns_pinv_steps))
        add = p.accelerated
        if p.gptopt_compat:
            return torch.bmm(m_BMN, inverse.chebyshev_pinv(c_BNN, add, p.rcond, p.ns_pinv_steps))
        return inverse.damped_solve(m_BMN, c_BNN, add)

    def _normalized(self, weights: list[Tensor], u_BMN: Tensor, step: int) -> Tensor:
        """Divide by the root of the averaged squares, entry by entry."""
        beta = self._params.dap_beta2
        if not beta:
            return u_BMN
        squares = self._state(weights, "exp_avg_sq")
        torch._foreach_mul_(squares, beta)
        found = list(u_BMN.to(squares[0].dtype).unbind())
        torch._foreach_addcmul_(squares, found, found, 1 - beta)
        root_BMN = torch.stack(squares).sqrt_().mul_((1 - beta**step) ** -0.5)
        return u_BMN / root_BMN.add_(self._params.dap_eps)

    def _sized(self, o_BMN: Tensor) -> Tensor:
        """Give each matrix's update the size that the parameters ask for."""
        tiny = torch.finfo(o_BMN.dtype).tiny
        if self._params.update_opnorm:
            norm_B = inverse.largest_singular_value(o_BMN, self._params.ns_pinv_steps)
            return o_BMN / norm_B.clamp_min(tiny)[:, None, None]
        if self._params.update_norm:
            rms_B11 = o_BMN.square().mean((-2, -1), keepdim=True).sqrt()
            return o_BMN * (UPDATE_RMS / rms_B11.clamp_min(tiny))
        return o_BMN

    def _step_rest(self, group: dict[str, Any], weights: list[Tensor], step: int) -> None:
        means, squares = self._state(weights, "exp_avg"), self._state(weights, "exp_avg_sq")
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        slots = [Slot(*columns) for columns in zip(weights, gradients, means, squares, strict=True)]
        beta1, beta2 = self._params.betas
        scalars = AdamWScalars(
            group["lr"], beta1, beta2, self._params.eps, group["weight_decay"], step
        )
        adamw_step(slots, scalars, "torch")

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
    moments: dict[Tensor, InputMoment] = {}
    if not params.disable_preconditioning:
        wanted = set(split.matrices.values())
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.weight in wanted:
                if module.weight not in moments:
                    moments[module.weight] = InputMoment(
                        params.xtx_subsample, whole=params.mb_subsampling
                    )
                moments[module.weight].watch(module)
    return Dap(list(split.matrices.values()), list(split.rest.values()), moments, params)
