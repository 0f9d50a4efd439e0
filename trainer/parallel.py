"""The processes that train one model together, each on its rows of every batch.

Whoever starts them sets ``MASTER_ADDR``, ``MASTER_PORT`` and ``LOCAL_RANK``, as torchrun does;
which rank this is of how many, the :class:`rundir.Run` says.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rundir import Diverged, OptsweepError, Preempted, RanksLost, Run
from trainer.config.device import may_have_cuda, no_cuda

log = logging.getLogger(__name__)

_kept: list[object] = []
"""Every process group that this process was in. Were DDP's reducer the last to hold one, its
destructor would wait, with Python's lock in hand, for a thread of gloo's that wants this lock."""

_SYNCS_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)
"""What DDP calls it; torch 2.13 warns of the old name in every run."""


class Ranks:
    """This process among those of its run; a run of one process communicates nothing.

    Every method is a collective: all ranks call it at the same step.
    """

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank, self.size, self.device = rank, size, device

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Add up the ranks' values in place; the result is the same to the bit on all of them."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """As :meth:`sum`, over the number of ranks."""
        return self.sum(values).div_(self.size) if self.size > 1 else values

    def agreed(self, reason: str | None, fault: BaseException | None = None) -> str | None:
        """Return one rank's reason to stop, the same on all; None when none has one.

        A signal may reach only some of the ranks, or reach them at different steps. Costs 0.1 ms
        between processes of one machine, and never waits for a GPU.

        Args:
            reason: this rank's; None to go on.
            fault: what ends this rank, and comes before any reason.

        Raises:
            BaseException: this rank's fault.
            RanksLost: that of another one, in its words.
        """
        if self.size > 1:
            mine = self.size if reason is None else self.rank
            lowest = torch.tensor(mine if fault is None else self.rank - self.size)
            dist.all_reduce(lowest, dist.ReduceOp.MIN)
            vote = int(lowest)
            if vote == self.size:
                return None
            speaker = vote % self.size
            reason = self.told_by(speaker, str(fault or reason))
            if vote < 0 and fault is None:
                raise RanksLost(f"rank {speaker} failed: {reason}")
        if fault is not None:
            raise fault
        return reason

    def told_by(self, rank: int, value: Any) -> Any:
        """Return what that rank passed, a small object that pickles."""
        if self.size == 1:
            return value
        told = [value]
        dist.broadcast_object_list(told, src=rank, device=torch.device("cpu"))
        return told[0]

    def averaging(self, model: nn.Module) -> nn.Module:
        """Return the model with gradients averaged over the ranks while backward runs.

        Every rank gets rank 0's weights.
        """
        if self.size == 1:
            return model
        options: dict[str, Any] = {_SYNCS_BUFFERS: False}  # they are constants
        return DistributedDataParallel(
            model,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            **options,
        )


def accumulating(model: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
    """Leave gradients of a micro-batch on their rank unless it is the last of its step.

    Where ranks hold only parts of the model, they are averaged each time: whole gradients have no
    room to wait in.
    """
    if last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()


def keep(group: object) -> None:
    """Keep a process group from its destructor until this process ends."""
    _kept.append(group)


@contextmanager
def joined(run: Run, wanted: str) -> Iterator[Ranks]:
    """Meet the other ranks of the run, and part in the end; a run of one process meets nobody.

    Args:
        run: says which rank this is of how many.
        wanted: ``device`` of the configuration.

    Raises:
        UserError: there is no such device here.
        RanksLost: another rank is gone.
    """
    local = int(os.environ.get("LOCAL_RANK", "0")) if run.world_size > 1 else 0
    ranks = Ranks(run.rank, run.world_size, pick_device(wanted, local))
    if ranks.size == 1:
        yield ranks
        return
    is_cuda = ranks.device.type == "cuda"
    if is_cuda:
        torch.cuda.set_device(ranks.device)
    backend = "cpu:gloo,cuda:nccl" if is_cuda else "gloo"
    try:
        dist.init_process_group(backend, rank=ranks.rank, world_size=ranks.size)
        keep(dist.group.WORLD)
        yield ranks
    except OptsweepError as error:
        # ncclCommDestroy waits until all ranks of the node call it. They do where all end for one
        # reason; a rank that fails alone, with a full disk say, has to end, or none hears of it.
        if not is_cuda or isinstance(error, (Diverged, Preempted)):
            dist.destroy_process_group()
        raise
    except RuntimeError as error:
        if _is_lost_contact(error):
            raise RanksLost(f"rank {ranks.rank} lost the others: {_first_line(error)}") from error
        raise
    dist.destroy_process_group()


def _is_lost_contact(error: RuntimeError) -> bool:
    said = str(error).lower()
    return isinstance(error, dist.DistError) or "gloo" in said or "nccl" in said


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def pick_device(wanted: str, local_rank: int) -> torch.device:
    """Return the device that ``device: auto | cpu | cuda`` means here.

    The log says so where ``auto`` passes over what looks like a GPU.

    Raises:
        UserError: cuda is wanted and there is none.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise no_cuda()
    if not available and wanted == "auto" and may_have_cuda():
        why = "is built without CUDA" if _accelerated() is None else "finds no device it can use"
        log.warning("a GPU seems to be here, but torch %s %s: on the CPU", torch.__version__, why)
    if not available or wanted == "cpu":
        return torch.device("cpu")
    # Under --gpus-per-task each rank sees only its own GPU, as number 0.
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def _accelerated() -> str | None:
    """Return the version of CUDA or ROCm that torch is built with."""
    return torch.version.cuda or torch.version.hip
