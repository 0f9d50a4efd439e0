"""momo, momo-adam and their stars: momentum whose step looks at the loss (arXiv 2305.07583).

    f <- b f + (1 - b) loss;   d <- b d + (1 - b) g;   c <- b c + (1 - b) <g, x>
    tau = min(lr / rho, [(1 + lr wd)(f - rho f* - c) + <d, x>]+ / <d, d / D>)
    x <- (x - tau d / D) / (1 + lr wd)          with divide: false, (1 - lr wd) x - tau d / D

f + <d, x - .> - c is the average of the last losses' tangents, f* a lower bound of the loss: the
step ends where that model reaches the bound. momo has D = 1; its averages start at their first
values and rho = 1, or with bias_correction at zero and rho = 1 - b^t. momo-adam has
D = sqrt(v / (1 - b2^t)) + eps, v <- b2 v + (1 - b2) g^2, and starts at zero.

f* is ``lb``. The stars start there and estimate it:

    before   if h = f - c + <d, x> / (1 + lr wd) < rho f*:   f* <- max(h / (2 rho), lb)
    after    f* <- max((f + <d, x> - c - tau <d, d / D> / 2) / rho, lb)    where the step moves

Where it does not, as at the lr of 0 that a warm-up starts with, the model has nothing to say of how
low the loss can get: f* would become the loss of now, and the next steps end where they begin.

Groups with a lr and wd of their own, lr_i and wd_i, have one model and one f*. With tau = lr_i s,
s = min(1 / rho, [f - rho f* - c + sum <d_i, x_i> / (1 + lr_i wd_i)]+
                 / sum lr_i <d_i, d_i / D_i> / (1 + lr_i wd_i)), which for one group is the above.

g is the clipped gradient, the loss the mean over micro-batches and ranks. A weight without gradient
is left out of that step's model; c is kept by weight for that reason. A non-finite gradient or loss
goes into weights and state: whoever steps looks first. A step never waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from trainer.kernels import Backend, choose_backend
from trainer.kernels.adam import clipped
from trainer.kernels.chunks import Plan
from trainer.kernels.operands import Numbers, Operands, Rule
from trainer.optim.averages import averaged, kept, kept_scalars, unbiased_roots
from trainer.optim.elementwise import Elementwise
from trainer.optim.groups import trainable
from trainer.optim.params import MomoAdamParams, MomoParams, TruncatedParams
from trainer.optim.truncation import (
    Truncating,
    average_loss,
    closure_loss,
    inner_products,
    kept_for_all,
    truncated_step,
)


@dataclass(frozen=True)
class _Share:
    """What a group's weights that have gradients add to the model of the loss."""

    lr: float | Tensor
    decay: float | Tensor
    """1 + lr wd."""
    offset: Tensor
    """c, a scalar as all below."""
    height: Tensor
    """<d, x>."""
    norm: Tensor
    """<d, d / D>."""

    @classmethod
    def of(cls, group: dict[str, Any], offset: Tensor, height: Tensor, norm: Tensor) -> _Share:
        """Return the share of a group with these sums."""
        return cls(group["lr"], 1 + group["lr"] * group["weight_decay"], offset, height, norm)


class Momo(Truncating, Elementwise):
    """MoMo: 4 bytes of state per fp32 weight.

    The kernel moves 28 bytes a weight, in one launch before the sums are known and one after. In
    torch a step makes two copies of the weights.
    """

    OWN_TYPES: ClassVar[Mapping[str, torch.dtype | None]] = {
        "step": torch.float32,
        "inner_avg": None,
    }
    _RULE: ClassVar[Rule] = "momo"
    _STATES: ClassVar[tuple[str, ...]] = ("exp_avg",)

    def __init__(
        self,
        weights: Iterable[Any],
        params: TruncatedParams,
        *,
        beta: float,
        from_zero: bool,
        divide: bool = True,
        backend: Backend = "torch",
    ) -> None:
        super().__init__(weights, {"lr": params.lr, "weight_decay": params.weight_decay})
        self._params, self._beta = params, beta
        self._from_zero, self._divide, self.backend = from_zero, divide, backend
        self._loss: Any = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every weight that has a gradient.

        Args:
            closure: returns the loss; the gradients may be there already.

        Raises:
            RuntimeError: there is no loss; nothing has changed.
        """
        self._loss = closure_loss(closure, self._params.name)
        super().step()
        return self._loss

    def _operands(self, group: dict[str, Any]) -> Operands:
        weights = [weight for weight in group["params"] if weight.grad is not None]
        steps = kept_scalars(self.state, "step", weights)
        gradients = [weight.grad for weight in weights]
        if self.backend == "torch":
            # There an average that is not yet kept starts at its first value.
            return Operands(weights, gradients, steps=steps)
        return Operands(
            weights,
            gradients,
            [kept(self.state, key, weights, weights, from_zero=True) for key in self._STATES],
            steps,
            kept_scalars(self.state, "inner_avg", weights),
        )

    def _step_torch(self, groups: Sequence[Operands], clip_factor: Tensor | None) -> None:
        parts = [
            (group, operands.weights, *self._part(group, operands, clip_factor))
            for group, operands in zip(self.param_groups, groups, strict=True)
            if operands.weights
        ]
        if parts:
            size = self._size([share for *_, share in parts])
            for group, weights, directions, _ in parts:
                self._move(group, weights, directions, size)

    def _part(
        self, group: dict[str, Any], operands: Operands, clip_factor: Tensor | None
    ) -> tuple[list[Tensor], _Share]:
        """Advance the averages; return d / D and the group's share of the model."""
        weights, gradients = operands.weights, clipped(operands.gradients, clip_factor)
        means = self._average("exp_avg", weights, gradients)
        inner = list(inner_products(gradients, weights).unbind())
        offsets = torch.stack(self._average("inner_avg", weights, inner))
        torch._foreach_add_(list(operands.steps), 1)
        directions = self._directions(operands, gradients, means)
        sums = (offsets, inner_products(means, weights), inner_products(means, directions))
        return directions, _Share.of(group, *(part.sum() for part in sums))

    def _step_triton(self, plan: Plan, clip_factor: Tensor | None) -> None:
        from trainer.kernels.elementwise_triton import step_chunks
        from trainer.kernels.numbers_triton import count_steps, momo_totals

        parts = [
            (group, part, self._numbers(group))
            for group, part in zip(self.param_groups, plan.parts, strict=True)
            if part.slots
        ]
        shares = []
        for group, part, numbers in parts:
            count_steps(self._RULE, plan, part, numbers)
            step_chunks(self._RULE, plan, part, numbers, clip_factor, phase="sums")
            totals = momo_totals(plan, part)
            shares.append(_Share.of(group, totals[0], totals[1], totals[2]))
        size = self._size(shares)
        for _, part, numbers in parts:
            step_chunks(self._RULE, plan, part, numbers, None, phase="apply", length=size)

    def _numbers(self, group: dict[str, Any]) -> Numbers:
        return Numbers(
            group["lr"],
            group["weight_decay"],
            self._beta,
            from_zero=self._from_zero,
            divide=self._divide,
        )

    def _size(self, shares: list[_Share]) -> Tensor:
        """Return the step in units of each group's learning rate, and learn from the loss."""
        average, bound, rho = self._model(like=shares[0].norm)
        height = average + sum(share.height / share.decay - share.offset for share in shares)
        slope = cast("Tensor", sum(share.lr / share.decay * share.norm for share in shares))
        lb = self._params.lb
        now = bound
        if self._params.online:
            reset = (height / (2 * rho)).clamp(min=lb)
            now = torch.where(height < rho * bound, reset, bound)
        size = truncated_step(rho * (height - rho * now), slope, 1.0) / rho
        if self._params.online:
            height = average + sum(share.height - share.offset for share in shares)
            fall = size * cast("Tensor", sum(share.lr * share.norm for share in shares))
            found = ((height - fall / 2) / rho).clamp(min=lb)
            bound.copy_(torch.where(fall == 0, now, found))
        self._keep_scale(size)
        return size

    def _model(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
        """Advance what is kept for all weights together; return f, f* and rho.

        In place, where a captured graph finds it at its next replay.
        """
        average = average_loss(self.state, self._loss, like, self._beta, from_zero=self._from_zero)
        step = kept_for_all(self.state, "step", torch.zeros((), device=like.device)).add_(1)
        bound = torch.full_like(average, self._params.lb)
        if self._params.online:
            bound = kept_for_all(self.state, "lower_bound", bound)
        rho = (1 - self._beta ** step.double()).to(average) if self._from_zero else 1.0
        return average, bound, rho

    def _move(
        self,
        group: dict[str, Any],
        weights: list[Tensor],
        directions: list[Tensor],
        size: Tensor,
    ) -> None:
        decay = group["lr"] * group["weight_decay"]
        decays = group["weight_decay"] != 0
        if decays and not self._divide:
            torch._foreach_mul_(weights, 1 - decay)
        torch._foreach_sub_(weights, torch._foreach_mul(directions, group["lr"] * size))
        if decays and self._divide:
            torch._foreach_div_(weights, 1 + decay)

    def _directions(
        self,
        operands: Operands,  # noqa: ARG002 - of the Adam form
        gradients: list[Tensor],  # noqa: ARG002
        means: list[Tensor],
    ) -> list[Tensor]:
        """Return d / D."""
        return means

    def _average(self, key: str, weights: list[Tensor], values: list[Tensor]) -> list[Tensor]:
        return averaged(self.state, key, weights, values, self._beta, from_zero=self._from_zero)


class MomoAdam(Momo):
    """MoMo-Adam: 8 bytes of state per fp32 weight; the kernel moves 40, torch makes 3 copies."""

    _RULE: ClassVar[Rule] = "momo-adam"
    _STATES: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")

    def __init__(
        self, weights: Iterable[Any], params: MomoAdamParams, backend: Backend = "torch"
    ) -> None:
        beta, self._beta2 = params.betas
        self._eps = params.eps
        super().__init__(
            weights, params, beta=beta, from_zero=True, divide=params.divide, backend=backend
        )

    def _directions(
        self, operands: Operands, gradients: list[Tensor], means: list[Tensor]
    ) -> list[Tensor]:
        squares = list(torch._foreach_mul(gradients, gradients))
        weights, beta = operands.weights, self._beta2
        averages = averaged(self.state, "exp_avg_sq", weights, squares, beta, from_zero=True)
        steps = torch.stack(list(operands.steps)).double()
        return list(torch._foreach_div(means, unbiased_roots(averages, beta, steps, self._eps)))

    def _numbers(self, group: dict[str, Any]) -> Numbers:
        return replace(super()._numbers(group), beta2=self._beta2, eps=self._eps)


def build_momo(model: nn.Module, params: MomoParams) -> Momo:
    """Build momo or momo-star.

    Raises:
        UserError: the Triton backend is asked for and cannot work.
    """
    weights = trainable(model)
    backend = choose_backend(params.backend, weights)
    from_zero = params.bias_correction
    return Momo(weights, params, beta=params.beta, from_zero=from_zero, backend=backend)


def build_momo_adam(model: nn.Module, params: MomoAdamParams) -> MomoAdam:
    """Build momo-adam or momo-adam-star.

    Raises:
        UserError: the Triton backend is asked for and cannot work.
    """
    weights = trainable(model)
    return MomoAdam(weights, params, choose_backend(params.backend, weights))
