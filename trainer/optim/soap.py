# ruff: noqa: N803, N806, N815 - tensor names end in their shape
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

A CUDA graph can capture a step after two eager ones like it. It holds a step without a refresh, for
which one is due only the host can tell: from then on :meth:`Soap.refresh` is the caller's.

Shape suffixes: B matrices of one shape, M rows, N columns; S a side, which is M or N.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import chain
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from trainer.kernels import AdamWScalars, choose_backend
from trainer.kernels.adamw import adamw_step
from trainer.kernels.layout import alike
from trainer.kernels.operands import Slot
from trainer.kernels.plans import Plans, require_states
from trainer.optim.averages import kept
from trainer.optim.counted import CountedOptimizer
from trainer.optim.groups import split_parameters
from trainer.optim.params import SoapParams
from trainer.optim.scaling import Number, add_scaled, decay_weights

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

_PLANS = 32
"""Rotated gradients are new tensors at each step: they have more places than gradients."""


class _Batch(NamedTuple):
    """Matrices of one shape and type, and their gradients."""

    weights: list[Tensor]
    g_BMN: Tensor


class Soap(CountedOptimizer):
    """SOAP in groups with ``rotated``, AdamW in the others; 8 bytes of state per fp32 weight.

    A matrix has 8 M^2 + 8 N^2 bytes more, and a step of it costs 6 M^2 N + 6 M N^2 FLOPs. Adam is
    one launch over the matrices of a group, by AdamW's kernel: of weights that are zero and move by
    a rate of -1.
    """

    OWN_TYPES: ClassVar[Mapping[str, torch.dtype | None]] = {
        **CountedOptimizer.OWN_TYPES,
        **dict.fromkeys(name for side in _SIDES for name in (side.moment, side.basis)),
    }

    def __init__(self, groups: list[dict[str, Any]], params: SoapParams) -> None:
        """Take the groups as they are.

        Raises:
            UserError: the backend that ``params`` asks for cannot work here.
        """
        super().__init__(groups, params.lr, params.weight_decay)
        self._params = params
        self._factor: Tensor | None = None
        self._plans = Plans(_PLANS)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        self._backend = choose_backend(params.backend, weights)

    @torch.no_grad()
    def refresh(self) -> None:
        """Refresh the bases of all matrices, as every ``precondition_frequency``-th step does.

        For who replays captured steps: between replays, after each whose number less one is a
        multiple of ``precondition_frequency``. Nothing waits for the device.

        Raises:
            RuntimeError: a CUDA graph is captured.
        """
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if self._has_bases(weight)]
            if weights and _captures(weights):
                raise RuntimeError("soap refreshes its bases between replays, not in a CUDA graph")
            for members in _by_shape(weights):
                self._refresh(members)

    def _moves_matrices(self, group: dict[str, Any]) -> bool:
        return bool(group["rotated"])

    def _look_where_to_count(
        self,
        group: dict[str, Any],  # noqa: ARG002 - a lr on the device is no reason not to count here
        weights: list[Tensor],
    ) -> None:
        require_states([weights], lambda weight: bool(self.state.get(weight)))
        self._device_counts |= _captures(weights)

    def _batches(self, weights: list[Tensor]) -> list[list[Tensor]]:
        """Return weights whose counters agree; where only the device knows, those that began."""
        if not self._device_counts:
            return super()._batches(weights)
        begun = [weight for weight in weights if self.state.get(weight)]
        fresh = [weight for weight in weights if not self.state.get(weight)]
        return [batch for batch in (begun, fresh) if batch]

    def _step_groups(self, clip_factor: Tensor | None) -> None:
        """Have the gradients clipped where they are read or stacked anyway."""
        self._factor = clip_factor
        super()._step_groups(None)
        self._factor = None

    def _move(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Any], step: Number
    ) -> None:
        if not group["rotated"]:
            self._move_rest(group, weights, gradients, step)
            return
        found = dict(zip(weights, gradients, strict=True))
        batches = [
            _Batch(members, self._gradient([found[weight] for weight in members]))
            for members in _by_shape(weights)
        ]
        if not self._has_bases(weights[0]):
            for batch in batches:
                self._begin(batch)
            return
        # The first step moved nothing, and does not count.
        for batch, n_BMN in zip(batches, self._directions(batches), strict=True):
            decay_weights(batch.weights, group["lr"], group["weight_decay"])
            moves = list(n_BMN.to(batch.weights[0].dtype).unbind())
            add_scaled(batch.weights, moves, -group["lr"])
            self._learn(batch)
            if not self._device_counts and self._due(batch.weights[0]):
                self._refresh(batch.weights)

    def _move_rest(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Any], step: Number
    ) -> None:
        p = self._params
        means, squares = self._zeros("exp_avg", weights), self._zeros("exp_avg_sq", weights)
        slots = list(map(Slot, weights, gradients, means, squares))
        scalars = AdamWScalars(group["lr"], *p.betas, p.eps, group["weight_decay"], step)
        adamw_step(slots, scalars, self._backend, self._factor, self._plans)

    def _gradient(self, gradients: list[Tensor]) -> Tensor:
        """Return a batch of gradients, clipped."""
        g_BMN = _stacked(gradients)
        return g_BMN if self._factor is None else g_BMN.mul_(self._factor)

    def _has_bases(self, weight: Tensor) -> bool:
        state: Mapping[str, Tensor] = self.state.get(weight, {})
        return any(side.basis in state for side in _SIDES)

    def _due(self, weight: Tensor) -> bool:
        """Whether the step that the host has just counted ends with a refresh."""
        return (self._on_host[weight]["step"] - 1) % self._params.precondition_frequency == 0

    def _begin(self, batch: _Batch) -> None:
        """Find the first bases."""
        # 0 g is NaN where g is not finite, which must not go unnoticed.
        gradients = list(batch.g_BMN.to(batch.weights[0].dtype).unbind())
        torch._foreach_add_(batch.weights, gradients, alpha=0)
        self._zeros("exp_avg", batch.weights)
        self._zeros("exp_avg_sq", batch.weights)
        for side in self._sides(batch.weights):
            vectors_BSS = _eigenvectors(self._moment(batch.weights, side, batch.g_BMN))
            for weight, basis in zip(batch.weights, vectors_BSS, strict=True):
                self.state[weight][side.basis] = basis.clone()

    def _directions(self, batches: list[_Batch]) -> list[Tensor]:
        """Advance the averages that the step is made of and return P N Q^T of each batch."""
        weights = [weight for batch in batches for weight in batch.weights]
        turned = [_rotated(batch.g_BMN, self._bases(batch.weights)) for batch in batches]
        steps = [torch.zeros_like(r_BMN) for r_BMN in turned]
        own = self._zeros("exp_avg", weights), self._zeros("exp_avg_sq", weights)
        flat = [[matrix for stack in stacks for matrix in stack] for stacks in (steps, turned)]
        # Averages in half precision move in the wider type of the bases.
        wide = [[m.to(r.dtype) for m, r in zip(means, flat[1], strict=True)] for means in own]
        slots = list(map(Slot, *flat, *wide))
        together = all(alike(slot.weight, other) for slot in slots for other in slot)
        scalars = AdamWScalars(
            -1.0, *self._params.betas, self._params.eps, 0.0, self._latest(weights) - 1
        )
        # The kernel walks all five in one order in memory.
        adamw_step(slots, scalars, self._backend if together else "torch", plans=self._plans)
        for average, moved in zip(chain(*own), chain(*wide), strict=True):
            if average is not moved:
                average.copy_(moved)
        return [
            _rotated_back(n_BMN, self._bases(batch.weights))
            for n_BMN, batch in zip(steps, batches, strict=True)
        ]

    def _learn(self, batch: _Batch) -> None:
        """Advance L and R."""
        for side in self._sides(batch.weights):
            self._moment(batch.weights, side, batch.g_BMN)

    def _sides(self, weights: list[Tensor]) -> list[_Side]:
        """Return those of matrices of one shape that have bases."""
        limit = self._params.max_precond_dim
        return [side for side in _SIDES if weights[0].shape[side.axis] <= limit]

    def _refresh(self, weights: list[Tensor]) -> None:
        """Sort and turn the bases of matrices of one shape, and what is kept in them."""
        means = self._zeros("exp_avg", weights)
        m_BMN = _rotated_back(_stacked(means), self._bases(weights))
        for side in self._sides(weights):
            self._refresh_side(weights, side)
        torch._foreach_copy_(means, list(_rotated(m_BMN, self._bases(weights)).unbind()))

    def _moment(self, weights: list[Tensor], side: _Side, g_BMN: Tensor) -> Tensor:
        """Advance L or R and return it."""
        beta = self._params.moment_decay
        wide_BSX = g_BMN if side.axis == -2 else g_BMN.mT
        found_BSS = torch.bmm(wide_BSX, wide_BSX.mT).mul_(1 - beta)
        moments = kept(self.state, side.moment, weights, list(found_BSS.unbind()), from_zero=True)
        moment_BSS = found_BSS.add_(_stacked(moments), alpha=beta)
        torch._foreach_copy_(moments, list(moment_BSS.unbind()))
        return moment_BSS

    def _refresh_side(self, weights: list[Tensor], side: _Side) -> None:
        """Sort a side's basis and V by the moment, and take one power iteration."""
        moment_BSS = _stacked([self.state[weight][side.moment] for weight in weights])
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
        sides = self._sides(weights)
        p_BMM, q_BNN = (
            _stacked([self.state[weight][side.basis] for weight in weights])
            if side in sides
            else None
            for side in _SIDES
        )
        return p_BMM, q_BNN


def build_soap(model: nn.Module, params: SoapParams) -> Soap:
    """Build soap.

    Raises:
        UserError: the Triton backend is asked for and cannot work.
    """
    split = split_parameters(model, params)
    matrices = list(split.matrices.values())
    rotated = [weight for weight in matrices if min(weight.shape) <= params.max_precond_dim]
    large = [weight for weight in matrices if min(weight.shape) > params.max_precond_dim]
    groups: list[dict[str, Any]] = [
        {"params": rotated, "rotated": True},
        {"params": large + list(split.rest.values()), "rotated": False},
    ]
    return Soap([group for group in groups if group["params"]], params)


def _by_shape(weights: list[Tensor]) -> list[list[Tensor]]:
    kinds: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = defaultdict(list)
    for weight in weights:
        kinds[weight.shape, weight.dtype].append(weight)
    return list(kinds.values())


def _captures(weights: list[Tensor]) -> bool:
    return weights[0].is_cuda and torch.cuda.is_current_stream_capturing()


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
