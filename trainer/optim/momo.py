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
    after    f* <- max((f + <d, x> - c - tau <d, d / D> / 2) / rho, lb)

Groups with a lr and wd of their own, lr_i and wd_i, have one model and one f*. With tau = lr_i s,
s = min(1 / rho, [f - rho f* - c + sum <d_i, x_i> / (1 + lr_i wd_i)]+
                 / sum lr_i <d_i, d_i / D_i> / (1 + lr_i wd_i)), which for one group is the above.

The loss is the mean over micro-batches and ranks. A weight without gradient is left out of that
step's model; c is kept by weight for that reason. A non-finite gradient or loss goes into weights
and state: whoever steps looks first. A step never waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainer.optim.averages import averaged
from trainer.optim.groups import trainable
from trainer.optim.params import MomoAdamParams, MomoParams, TruncatedParams
from trainer.optim.truncation import closure_loss, truncated_step

_SHARED = "model"
"""Key of the state that belongs to no single weight."""


@dataclass(frozen=True)
class _Part:
    """A group's weights that have gradients, and its share of the model of the loss."""

    weights: list[Tensor]
    directions: list[Tensor]
    """d / D."""
    lr: float
    decay: float
    """1 + lr wd."""
    offset: Tensor
    """c, a scalar as all below."""
    height: Tensor
    """<d, x>."""
    norm: Tensor
    """<d, d / D>."""


class Momo(torch.optim.Optimizer):
    """MoMo: 4 bytes of state per fp32 weight; a step makes two temporary copies of the weights."""

    def __init__(
        self,
        weights: Iterable[Any],
        params: TruncatedParams,
        *,
        beta: float,
        from_zero: bool,
        divide: bool = True,
    ) -> None:
        super().__init__(weights, {"lr": params.lr, "weight_decay": params.weight_decay})
        self._params, self._beta = params, beta
        self._from_zero, self._divide = from_zero, divide

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every weight that has a gradient.

        Args:
            closure: returns the loss; the gradients may be there already.

        Raises:
            RuntimeError: there is no loss; nothing has changed.
        """
        loss = closure_loss(closure, self._params.name)
        parts = []
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                parts.append(self._part(group, weights))
        if parts:
            size = self._size(parts, loss)
            for part in parts:
                self._move(part, size)
        return loss

    def _part(self, group: dict[str, Any], weights: list[Tensor]) -> _Part:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        means = self._average("exp_avg", weights, gradients)
        offsets = self._average("inner_avg", weights, _inner(gradients, weights))
        directions = self._directions(weights, gradients, means)
        return _Part(
            weights,
            directions,
            group["lr"],
            1 + group["lr"] * group["weight_decay"],
            torch.stack(offsets).sum(),
            torch.stack(_inner(means, weights)).sum(),
            torch.stack(_inner(means, directions)).sum(),
        )

    def _size(self, parts: list[_Part], loss: Any) -> Tensor:
        """Return the step in units of each group's learning rate, and learn from the loss."""
        average, bound, rho = self._model(loss, like=parts[0].norm)
        height = average + sum(part.height / part.decay - part.offset for part in parts)
        slope = cast("Tensor", sum(part.lr / part.decay * part.norm for part in parts))
        lb = self._params.lb
        if self._params.online:
            reset = (height / (2 * rho)).clamp(min=lb)
            bound = torch.where(height < rho * bound, reset, bound)
        size = truncated_step(height - rho * bound, slope, 1 / rho)
        if self._params.online:
            height = average + sum(part.height - part.offset for part in parts)
            fall = size * cast("Tensor", sum(part.lr * part.norm for part in parts))
            self._shared["lower_bound"] = ((height - fall / 2) / rho).clamp(min=lb)
        return size

    def _model(self, loss: Any, like: Tensor) -> tuple[Tensor, Tensor, float]:
        """Advance what is kept for all weights together; return f, f* and rho."""
        loss = torch.as_tensor(loss, dtype=like.dtype, device=like.device).detach()
        kept = self._shared
        beta, step = self._beta, kept.get("step", 0) + 1
        start = torch.zeros_like(loss) if self._from_zero else loss
        average = torch.lerp(kept.get("loss_avg", start).to(loss), loss, 1 - beta)
        kept |= {"step": step, "loss_avg": average}
        bound = kept.get("lower_bound", torch.full_like(loss, self._params.lb)).to(loss)
        return average, bound, 1 - beta**step if self._from_zero else 1.0

    def _move(self, part: _Part, size: Tensor) -> None:
        decays = part.decay != 1
        if decays and not self._divide:
            torch._foreach_mul_(part.weights, 2 - part.decay)
        torch._foreach_sub_(part.weights, torch._foreach_mul(part.directions, part.lr * size))
        if decays and self._divide:
            torch._foreach_div_(part.weights, part.decay)

    def _directions(
        self,
        weights: list[Tensor],  # noqa: ARG002 - of the Adam form
        gradients: list[Tensor],  # noqa: ARG002
        means: list[Tensor],
    ) -> list[Tensor]:
        """Return d / D."""
        return means

    def _average(self, key: str, weights: list[Tensor], values: list[Tensor]) -> list[Tensor]:
        return averaged(self.state, key, weights, values, self._beta, from_zero=self._from_zero)

    @property
    def _shared(self) -> dict[str, Any]:
        """What is kept for all weights together; torch saves and loads such a state as it is."""
        shared: dict[str, Any] = cast("dict[Any, Any]", self.state)[_SHARED]
        return shared


class MomoAdam(Momo):
    """MoMo-Adam: 8 bytes of state per fp32 weight; a step makes three copies of the weights."""

    def __init__(self, weights: Iterable[Any], params: MomoAdamParams) -> None:
        beta, self._beta2 = params.betas
        super().__init__(weights, params, beta=beta, from_zero=True, divide=params.divide)
        self._eps = params.eps

    def _directions(
        self, weights: list[Tensor], gradients: list[Tensor], means: list[Tensor]
    ) -> list[Tensor]:
        squares = list(torch._foreach_mul(gradients, gradients))
        averages = averaged(self.state, "exp_avg_sq", weights, squares, self._beta2, from_zero=True)
        corrections = []
        for weight in weights:
            state = self.state[weight]
            state["step"] = state.get("step", 0) + 1
            corrections.append(1 - self._beta2 ** state["step"])
        scales = torch._foreach_div(averages, corrections)
        torch._foreach_sqrt_(scales)
        torch._foreach_add_(scales, self._eps)
        return list(torch._foreach_div(means, scales))


def build_momo(model: nn.Module, params: MomoParams) -> Momo:
    """Build momo or momo-star."""
    return Momo(trainable(model), params, beta=params.beta, from_zero=params.bias_correction)


def build_momo_adam(model: nn.Module, params: MomoAdamParams) -> MomoAdam:
    """Build momo-adam or momo-adam-star."""
    return MomoAdam(trainable(model), params)


def _inner(left: Sequence[Tensor], right: Sequence[Tensor]) -> list[Tensor]:
    """Return the inner product of each pair, summed in at least fp32."""
    products = torch._foreach_mul(list(left), list(right))
    wide = torch.promote_types(products[0].dtype, torch.float32)
    return [product.sum(dtype=wide) for product in products]
