"""A copy of a run's state in host memory, to be written while training goes on."""

from __future__ import annotations

import logging
from typing import Any

import torch

log = logging.getLogger(__name__)


class HostCopy:
    """Memory for such a copy, used again for the next: fresh pages cost four times the copying."""

    def __init__(self, device: torch.device) -> None:
        """Keep nothing yet.

        Args:
            device: where the state lies; copies of a GPU's are page-locked, so that nobody waits.
        """
        self._is_cuda = device.type == "cuda"
        self._pins = self._is_cuda
        self._memory: list[torch.Tensor] = []
        self._copied: torch.cuda.Event | None = None

    def of(self, state: Any) -> Any:
        """Return ``state`` with its tensors copied, in the place of the copy before.

        On CUDA the copying is only queued, in front of whatever changes the state next:
        :meth:`wait` before reading. Tensors that share memory share it in the copy.
        """
        used: list[torch.Tensor] = []
        copies: dict[Any, torch.Tensor] = {}

        def copied(node: Any) -> Any:
            if isinstance(node, torch.Tensor):
                same = (node.device, node.data_ptr(), node.shape, node.stride(), node.dtype)
                if not node.numel() or same not in copies:
                    copies[same] = self._room_for(node, len(used))
                    used.append(copies[same].copy_(node, non_blocking=True))
                return copies[same]
            if isinstance(node, dict):
                return {key: copied(value) for key, value in node.items()}
            if isinstance(node, (list, tuple)):
                return type(node)(map(copied, node))
            return node

        with torch.no_grad():
            whole = copied(state)
        self._memory = used
        if self._is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        return whole

    def wait(self) -> None:
        """Wait, in whichever thread, until the copy is whole."""
        if self._copied is not None:
            self._copied.synchronize()

    def _room_for(self, tensor: torch.Tensor, index: int) -> torch.Tensor:
        """Return memory of the tensor's layout: that of the last copy's ``index``-th if it fits."""
        if index < len(self._memory):
            room = self._memory[index]
            layout = (tensor.shape, tensor.stride(), tensor.dtype)
            if (room.shape, room.stride(), room.dtype) == layout:
                return room
        if self._pins and tensor.is_cuda:
            try:
                return torch.empty_like(tensor, device="cpu", pin_memory=True)
            except RuntimeError as error:  # a limit on locked memory
                self._pins = False
                log.warning(
                    "checkpoints are copied to pageable memory: %s", str(error).split("\n")[0]
                )
        return torch.empty_like(tensor, device="cpu")
