"""Trains as ``python resuming.py ORDERS`` says, each order in a process of its own that may die.

Started with RANK 0 and 1 it carries out on two ranks the orders that are for two; test_resume.py
gives them.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trainer
from rundir import OptsweepError, Run
from trainer.checkpoints import files, list_checkpoints

RANK = int(os.environ["RANK"])


class MovedRun(Run):
    """A run that something befalls once a step is logged."""

    def __init__(self, order: dict[str, Any]) -> None:
        super().__init__(
            order["path"],
            attempt=order["attempt"],
            threads=1,
            rank=RANK if order["ranks"] > 1 else 0,
            world_size=order["ranks"],
        )
        self._fate, self._step = order["fate"], order["step"]

    def log(self, stream: str, step: int, **metrics: float) -> None:
        super().log(stream, step, **metrics)
        if step != self._step or self.rank:
            return
        for thread in threading.enumerate():
            if thread.name == "checkpoint":  # the one before is whole
                thread.join()
        if self._fate == "no room":
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        elif self._fate in DEATHS:
            DEATHS[self._fate]()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying_in(owner: Any, name: str, is_time: Callable[..., bool], *, after: bool = False) -> None:
    """Have the process killed before, or after, that function does what ``is_time`` waits for."""
    real = getattr(owner, name)

    def fatal(*given: Any, **named: Any) -> Any:
        if not is_time(*given):
            return real(*given, **named)
        if after:
            real(*given, **named)
        die()
        return None

    setattr(owner, name, fatal)


def dies_as_it_writes(piece: int) -> None:
    """Be killed before the ``piece``-th write of a checkpoint."""
    writes = iter(range(piece))
    dying_in(files._HashedFile, "write", lambda *_: next(writes, None) is None)


DEATHS: dict[str, Callable[[], None]] = {
    "between two steps": die,
    "at the first byte": lambda: dies_as_it_writes(0),
    "in the middle": lambda: dies_as_it_writes(40),
    "before fsync": lambda: dying_in(os, "fsync", lambda _: True),
    "before the name": lambda: dying_in(os, "replace", lambda _, to: to.suffix == ".pt"),
    "before the hash": lambda: dying_in(os, "replace", lambda _, to: to.suffix == ".sha256"),
    "as an old one goes": lambda: dying_in(
        Path, "unlink", lambda path: path.name.startswith("step-"), after=True
    ),
}
"""What happens from a step on, by where the process then is killed."""


def train(order: dict[str, Any]) -> str:
    """Train and return what ended it."""
    try:
        with MovedRun(order) as run:
            trainer.run(order["config"], run)
    except OptsweepError as error:
        return f"{type(error).__name__}: {error}"
    return "completed"


def carry_out(order: dict[str, Any], said: Path) -> str:
    """Train in a fork and return what it said, or the signal that killed it."""
    os.environ["MASTER_PORT"] = order["port"]
    os.environ["LOCAL_RANK"] = str(RANK)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            said.write_text(train(order))
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return said.read_text() if status == 0 else f"exit code {os.WEXITSTATUS(status)}"


def forget(order: dict[str, Any]) -> None:
    """Drop the checkpoints after the step that the order goes on from."""
    for step, path in list_checkpoints(Path(order["path"]) / "checkpoints"):
        if order["forget"] is not None and step > order["forget"]:
            path.unlink()
            path.with_name(f"{path.name}.sha256").unlink()


def main() -> None:
    trainer.preload()  # as a worker does before it forks
    import torch._dynamo  # noqa: F401 - which DistributedDataParallel would import in each fork

    script = Path(sys.argv[1])
    ends: list[str | None] = []
    for order in json.loads(script.read_text()):
        is_for_me = order["ranks"] > RANK
        if is_for_me and RANK == 0:
            forget(order)
        said = script.with_name(f"said.{RANK}")
        ends.append(carry_out(order, said) if is_for_me else None)
    script.with_name(f"ends.{RANK}.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    main()
