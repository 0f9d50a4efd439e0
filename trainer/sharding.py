"""FSDP2: every rank holds a part of each weight, and of its gradient and optimizer state.

For models that do not fit one GPU (arXiv 2304.11277). Before a block's forward and backward pass
its weights are gathered, and dropped after; its gradients are averaged and cut as they come.

The optimizer is given the parts as plain tensors under the weights' names. So each optimizer that
treats every number by itself works, its kernels too. One that looks at whole matrices, or at sums
over all weights, can't, and is refused (:data:`trainer.config.parallel.ELEMENTWISE`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from rundir import UserError
from trainer.optim.groups import names_of
from trainer.parallel import keep


class Shards:
    """A model cut into its ranks' parts, in place."""

    def __init__(self, model: nn.Module, blocks: list[nn.Module], device: torch.device) -> None:
        """Cut each of ``blocks`` by itself, and what is left of ``model`` together.

        All ranks call it, with equal weights.

        Raises:
            UserError: torch is too old.
        """
        try:
            from torch.distributed.fsdp import fully_shard
        except ImportError:
            raise UserError(
                f"training.training_params.parallel = fsdp needs torch 2.6 or newer; "
                f"this is {torch.__version__}"
            ) from None
        mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        keep(mesh.get_group())
        # Gathered weights are always dropped: an optimizer may validate others than it trains.
        for part in (*blocks, model):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
        self.model = model
        self._whole: dict[nn.Parameter, DTensor] = {}
        self.parts = self._parts()
        """This rank's part of each weight, which shares its memory, under the model's names."""

    def take_gradients(self) -> None:
        """Give the parts the gradients that backward left in the model."""
        for part, whole in self._whole.items():
            here = whole.to_local().detach()
            if here.data_ptr() != part.data_ptr():
                # Some versions of torch move uneven parts in the first pass.
                part.data = here
            gradient = whole.grad
            part.grad = None if gradient is None else gradient.to_local()  # type: ignore[attr-defined]
            whole.grad = None

    def state_dicts(
        self, optimizer: torch.optim.Optimizer
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the states of the model and of its optimizer with whole tensors, on the CPU.

        All ranks call it. Only rank 0 gets tensors; the others would have no room for them.
        """
        keeps = torch.distributed.get_rank() == 0
        model = {
            name: _gathered(part, keeps=keeps) for name, part in self.model.state_dict().items()
        }
        state = optimizer.state_dict()
        by_number = _numbered(optimizer, state)
        whole = {
            number: {
                key: _gathered(self._as_whole(by_number[number], value), keeps=keeps)
                for key, value in entry.items()
            }
            for number, entry in state["state"].items()
        }
        return model, {**state, "state": whole}

    def load_state_dicts(
        self, optimizer: torch.optim.Optimizer, model: dict[str, Any], state: dict[str, Any]
    ) -> None:
        """Take this rank's parts of states with whole tensors, as one process has them."""
        with torch.no_grad():
            for name, mine in self.model.state_dict().items():
                mine.to_local().copy_(_part_of(model[name], mine))
        by_number = _numbered(optimizer, state)
        parts = {
            number: {
                key: _part_of(value, self._whole[by_number[number]])
                if _is_like(value, self._whole[by_number[number]].shape)
                else value
                for key, value in entry.items()
            }
            for number, entry in state["state"].items()
        }
        optimizer.load_state_dict({**state, "state": parts})

    def _parts(self) -> nn.Module:
        root = nn.Module()
        root.config = self.model.config  # what muP asks for
        for whole, names in names_of(self.model).items():
            part = nn.Parameter(whole.to_local().detach())  # type: ignore[attr-defined]
            self._whole[part] = whole  # type: ignore[assignment]
            for name in names:
                *path, last = name.split(".")
                node = root
                for key in path:
                    if key not in dict(node.named_children()):
                        node.add_module(key, nn.Module())
                    node = node.get_submodule(key)
                node.register_parameter(last, part)
        return root

    def _as_whole(self, part: nn.Parameter, value: object) -> object:
        """Return a state of a part's shape as a part of a whole one; anything else as it is."""
        if not _is_like(value, part.shape) or part.ndim == 0:
            return value
        weight = self._whole[part]
        return DTensor.from_local(
            value,  # type: ignore[arg-type]
            weight.device_mesh,
            weight.placements,
            run_check=False,
            shape=weight.shape,
            stride=weight.stride(),
        )


def _numbered(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[int, nn.Parameter]:
    """Return which weight each number of a state dict stands for."""
    return {
        number: weight
        for ours, theirs in zip(optimizer.param_groups, state["param_groups"], strict=True)
        for weight, number in zip(ours["params"], theirs["params"], strict=True)
    }


def _is_like(value: object, shape: torch.Size) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == shape


def _gathered(value: Any, *, keeps: bool) -> Any:
    """Return a tensor whole and on the CPU, or nothing of it where it is not kept."""
    if isinstance(value, DTensor):
        value = value.full_tensor()
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True) if keeps else None
    return value


def _part_of(value: torch.Tensor, weight: Any) -> torch.Tensor:
    """Return this rank's part of a whole tensor that is cut as ``weight`` is."""
    (placement,) = weight.placements
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    pieces = value.chunk(ranks, dim=placement.dim)
    if rank < len(pieces):
        return pieces[rank]
    return value.narrow(placement.dim, 0, 0)
