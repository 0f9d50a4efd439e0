# ruff: noqa: N806 - tensor names end in their shape
"""muon and scion: steepest descent in a product norm (arXiv 2510.09827), in its LMO form.

    m <- mu m + (1 - mu) g                     starting at the first g
    matrices         W <- (1 - lr wd) W - lr s polar(m)
    rest, adam_inf   m with beta1; v <- beta2 v + (1 - beta2) g^2, starting at g^2
                     W <- (1 - lr wd) W - lr m / (sqrt(v) + eps)
    rest, sign       W <- (1 - lr wd) W - lr sign(m)

There is no bias correction, since the averages start at their first values. A step never waits for
the device. A non-finite gradient goes into the state: whoever steps looks first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.optim.averages import averaged
from trainer.optim.groups import split_parameters
from trainer.optim.params import MuonParams, ScionParams
from trainer.optim.polar import Method, polar_factor


class SpectralDescent(torch.optim.Optimizer):
    """Groups with ``norm`` spectral, adam_inf or sign: 4, 8 or 4 bytes of state per weight."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, weight_decay: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._step_group(group, weights)
        return loss

    def _step_group(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        means = averaged(self.state, "momentum_buffer", weights, gradients, group["momentum"])
        if group["norm"] == "spectral":
            directions = polar_factors(
                means, group["polar"], group["ns_steps"], group["gptopt_compat"]
            )
        elif group["norm"] == "sign":
            directions = list(torch._foreach_sign(means))
        else:
            squares = list(torch._foreach_mul(gradients, gradients))
            squares = averaged(self.state, "exp_avg_sq", weights, squares, group["beta2"])
            roots = torch._foreach_sqrt(squares)
            torch._foreach_add_(roots, group["eps"])
            directions = list(torch._foreach_div(means, roots))
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, directions, alpha=-group["lr"] * group["scale"])


def polar_factors(
    matrices: Sequence[Tensor], method: Method, steps: int, gptopt_compat: bool
) -> list[Tensor]:
    """Return the polar factor of each matrix, in its dtype.

    Matrices of one shape, or of its transpose, go through the products as one batch.
    """
    batches: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, matrix in enumerate(matrices):
        rows, columns = matrix.shape
        batches[min(rows, columns), max(rows, columns)].append(i)
    factors = list(matrices)
    for indices in batches.values():
        stack_BMN = torch.stack([_wide(matrices[i]) for i in indices])
        result_BMN = polar_factor(stack_BMN, method, steps, gptopt_compat).to(stack_BMN.dtype)
        for i, factor in zip(indices, result_BMN.unbind(), strict=True):
            factors[i] = factor if matrices[i].shape == factor.shape else factor.mT
    return factors


def build_spectral(model: nn.Module, params: ScionParams) -> SpectralDescent:
    """Build muon or scion."""
    split = split_parameters(model)
    matrices = {
        "params": list(split.matrices.values()),
        "norm": "spectral",
        "momentum": params.momentum,
        "scale": params.matrix_scale,
        "polar": params.polar,
        "ns_steps": params.ns_steps,
        "gptopt_compat": params.gptopt_compat,
    }
    rest: dict[str, Any] = {"params": list(split.rest.values()), "scale": 1.0}
    if isinstance(params, MuonParams):
        beta1, beta2 = params.betas
        rest |= {"norm": "adam_inf", "momentum": beta1, "beta2": beta2, "eps": params.eps}
    else:
        rest |= {"norm": "sign", "momentum": params.momentum}
    groups = [group for group in (matrices, rest) if group["params"]]
    return SpectralDescent(groups, params.lr, params.weight_decay)


def _wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
