# ruff: noqa: N803, N806 - tensor names end in their shape
"""soap: Adam in the eigenbasis of Shampoo's preconditioner (arXiv 2409.11321).

For the gradient G of a matrix W, and t counted from its second gradient:

    M <- b1 M + (1 - b1) G;   V <- b2 V + (1 - b2) (P^T G Q)^2
    W <- (1 - lr wd) W - lr P N Q^T
    N = P^T M Q / (1 - b1^t) / (sqrt(V / (1 - b2^t)) + eps)
    L <- b L + (1 - b) G G^T;   R <- b R + (1 - b) G^T G
    every ``precondition_frequency`` steps   P <- QR(L P);   Q <- QR(R Q)

P and Q start at the eigenvectors of L and R after the first gradient, and that step moves no
matrix: in the basis of its own singular vectors a gradient is diagonal but for rounding, which
Adam would blow up to full size. A refresh is one power iteration; before it the columns of P and Q,
with V's rows and columns, are sorted by their part of L and R. A side longer than
``max_precond_dim`` has the identity for its basis; matrices with two such sides, and everything
that is no matrix, move by AdamW from the first step on.

M is kept as P^T M Q, and turned with the bases. On CUDA the first step of each matrix waits for the
device, since torch's eigh does; later ones do not. A non-finite gradient goes into weights and
state: whoever steps looks first.

Shape suffixes: B matrices of one shape, M rows, N columns; S a side, which is M or N.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from trainer.optim.averages import kept
from trainer.optim.counted import CountedOptimizer
from trainer.optim.groups import split_parameters
from trainer.optim.params import SoapParams
from trainer.optim.scaling import Number, decay_weights

_Bases = tuple[Tensor | None, Tensor | None]
"""P (B, M, M) and Q (B, N, N)."""


class _Side(NamedTuple):
    """One side of the matrices: its axis, and what is kept for it."""

    axis: int
    moment: str
    """L or R."""
    basis: str
    """P or Q."""


_SIDES = (
    _Side(-2, "row_moment", "row_basis"),
    _Side(-1, "column_moment", "column_basis"),
)


class Soap(CountedOptimizer):
    """SOAP in groups with ``rotated``, AdamW in the others; 8 bytes of state per fp32 weight.

    A matrix has 8 M^2 + 8 N^2 bytes more, and a step of it costs 6 M^2 N + 6 M N^2 FLOPs.
    """

    OWN_TYPES: ClassVar[Mapping[str, torch.dtype | None]] = {
        **CountedOptimizer.OWN_TYPES,
        **dict.fromkeys(name for side in _SIDES for name in (side.moment, side.basis)),
    }

    def __init__(self, groups: list[dict[str, Any]], params: SoapParams) -> None:
        super().__init__(groups, params.lr, params.weight_decay)
        self._params = params

    def _move(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Any], step: Number
    ) -> None:
        p = self._params
        if not group["rotated"]:
            self._move_by_adamw(group, weights, gradients, step, p.betas, p.eps)
            return
        taken = cast("float", step)
        batches: dict[torch.Size, list[int]] = defaultdict(list)
        for i, weight in enumerate(weights):
            batches[weight.shape].append(i)
        for members in batches.values():
            batch, found = [weights[i] for i in members], [gradients[i] for i in members]
            g_BMN = _stacked(found)
            if taken == 1:
                # 0 g is NaN where g is not finite, which must not go unnoticed.
                torch._foreach_add_(batch, found, alpha=0)
            else:
                self._move_matrices(group, batch, self._direction(batch, g_BMN, taken - 1))
            self._learn(batch, g_BMN, taken - 1)

    def _look_where_to_count(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        super()._look_where_to_count(group, weights)
        if self._device_counts:
            raise RuntimeError(
                "soap refreshes its bases in some steps only, as the host counts them: its steps "
                "can't be captured in a CUDA graph, nor its lr be a tensor"
            )

    def _move_matrices(self, group: dict[str, Any], weights: list[Tensor], n_BMN: Tensor) -> None:
        decay_weights(weights, group["lr"], group["weight_decay"])
        moves = list(n_BMN.to(weights[0].dtype).unbind())
        torch._foreach_add_(weights, moves, alpha=-group["lr"])

    def _direction(self, weights: list[Tensor], g_BMN: Tensor, step: float) -> Tensor:
        """Advance the averages that the step is made of and return P N Q^T."""
        beta1, beta2 = self._params.betas
        bases = self._bases(weights)
        r_BMN = _rotated(g_BMN, bases)
        means, squares = self._zeros("exp_avg", weights), self._zeros("exp_avg_sq", weights)
        m_BMN = _stacked(means).lerp_(r_BMN, 1 - beta1)
        torch._foreach_copy_(means, list(m_BMN.unbind()))
        v_BMN = _stacked(squares).mul_(beta2).addcmul_(r_BMN, r_BMN, value=1 - beta2)
        torch._foreach_copy_(squares, list(v_BMN.unbind()))
        root_BMN = v_BMN.div_(1 - beta2**step).sqrt_().add_(self._params.eps)
        n_BMN = m_BMN.div_(root_BMN).div_(1 - beta1**step)
        return _rotated_back(n_BMN, bases)

    def _learn(self, weights: list[Tensor], g_BMN: Tensor, step: float) -> None:
        """Advance L and R, and P and Q in their first step and when their refresh is due."""
        due = step > 0 and step % self._params.precondition_frequency == 0
        means = self._zeros("exp_avg", weights)
        if due:
            m_BMN = _rotated_back(_stacked(means), self._bases(weights))
        for side in _SIDES:
            if g_BMN.shape[side.axis] > self._params.max_precond_dim:
                continue
            moment_BSS = self._moment(weights, side, g_BMN)
            if step == 0:
                for weight, basis in zip(weights, _eigenvectors(moment_BSS), strict=True):
                    self.state[weight][side.basis] = basis.clone()
            elif due:
                self._refresh(weights, side, moment_BSS)
        if due:
            turned = _rotated(m_BMN, self._bases(weights))
            torch._foreach_copy_(means, list(turned.unbind()))

    def _moment(self, weights: list[Tensor], side: _Side, g_BMN: Tensor) -> Tensor:
        """Advance L or R and return it."""
        beta = self._params.moment_decay
        wide_BSX = g_BMN if side.axis == -2 else g_BMN.mT
        found_BSS = torch.bmm(wide_BSX, wide_BSX.mT).mul_(1 - beta)
        moments = kept(self.state, side.moment, weights, list(found_BSS.unbind()), from_zero=True)
        moment_BSS = found_BSS.add_(_stacked(moments), alpha=beta)
        torch._foreach_copy_(moments, list(moment_BSS.unbind()))
        return moment_BSS

    def _refresh(self, weights: list[Tensor], side: _Side, moment_BSS: Tensor) -> None:
        """Sort a side's basis and V by the moment, and take one power iteration."""
        bases = [self.state[weight][side.basis] for weight in weights]
        basis_BSS = _stacked(bases)
        product_BSS = torch.bmm(moment_BSS, basis_BSS)
        part_BS = (basis_BSS * product_BSS).sum(-2)
        order_BS = part_BS.argsort(dim=-1, descending=True, stable=True)
        squares = self._zeros("exp_avg_sq", weights)
        v_BMN = _stacked(squares)
        torch._foreach_copy_(squares, list(_sorted(v_BMN, order_BS, side.axis).unbind()))
        basis_BSS = torch.linalg.qr(_sorted(product_BSS, order_BS, -1)).Q
        torch._foreach_copy_(bases, list(basis_BSS.unbind()))

    def _bases(self, weights: list[Tensor]) -> _Bases:
        """Return P and Q; None is the identity."""
        shape, limit = weights[0].shape, self._params.max_precond_dim
        p_BMM, q_BNN = (
            None
            if shape[side.axis] > limit
            else _stacked([self.state[weight][side.basis] for weight in weights])
            for side in _SIDES
        )
        return p_BMM, q_BNN


def build_soap(model: nn.Module, params: SoapParams) -> Soap:
    """Build soap."""
    split = split_parameters(model, params)
    matrices = list(split.matrices.values())
    rotated = [weight for weight in matrices if min(weight.shape) <= params.max_precond_dim]
    large = [weight for weight in matrices if min(weight.shape) > params.max_precond_dim]
    groups: list[dict[str, Any]] = [
        {"params": rotated, "rotated": True},
        {"params": large + list(split.rest.values()), "rotated": False},
    ]
    return Soap([group for group in groups if group["params"]], params)


def _stacked(matrices: list[Tensor]) -> Tensor:
    """Return a batch in at least fp32; eigenvectors and QR have nothing below."""
    stack_BMN = torch.stack(matrices)
    return stack_BMN.to(torch.promote_types(stack_BMN.dtype, torch.float32))


def _rotated(x_BMN: Tensor, bases: _Bases) -> Tensor:
    """Return P^T X Q, a new tensor unless both are the identity."""
    p_BMM, q_BNN = bases
    if p_BMM is not None:
        x_BMN = torch.bmm(p_BMM.mT, x_BMN)
    return x_BMN if q_BNN is None else torch.bmm(x_BMN, q_BNN)


def _rotated_back(x_BMN: Tensor, bases: _Bases) -> Tensor:
    """Return P X Q^T."""
    p_BMM, q_BNN = (None if basis is None else basis.mT for basis in bases)
    return _rotated(x_BMN, (p_BMM, q_BNN))


def _eigenvectors(moment_BSS: Tensor) -> Tensor:
    """Return eigenvectors as columns, the largest eigenvalue's first.

    A matrix that is not finite, which eigh raises an error on, counts as zero.
    """
    finite_B11 = moment_BSS.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    vectors: Tensor = torch.linalg.eigh(moment_BSS.where(finite_B11, 0.0)).eigenvectors
    return vectors.flip(-1)


def _sorted(x_BMN: Tensor, order_BS: Tensor, axis: int) -> Tensor:
    """Return the rows (axis -2) or columns (axis -1) in this order."""
    index = order_BS.unsqueeze(-1 if axis == -2 else -2)
    return x_BMN.gather(axis, index.expand_as(x_BMN))
