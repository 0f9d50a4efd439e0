"""Weights & Biases, by the package ``wandb``; the key is wandb's to find and reaches no file here.

``wandb login``, or ``WANDB_API_KEY`` in the environment, says who logs; ``WANDB_MODE=offline`` or
``mode: offline`` keeps everything in ``wandb/`` of the run directory, for ``wandb sync`` later.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.config.logging import WandbParams
from trainer.loggers.identity import Identity
from trainer.loggers.recorded import recorded
from trainer.loggers.wandb_file import last_steps_offline

DIRECTORY = "wandb"
"""Of the run directory; wandb itself makes one of this name in the directory that it is given."""

LOGGED_FILE = "logged.txt"
"""There: a line ``stream step`` for each record that wandb has on the disk for sure. What it got in
the last seconds before a kill may be there too: offline its own file tells."""

FLUSH_S = 2.0
"""Between two writes of wandb's to the disk; what a kill finds in its memory is lost."""

INIT_TIMEOUT_S = 20.0
"""How long a server may take to answer. Meanwhile the run trains, and its records wait."""

SERVICE = "wandb-core"
"""Name of the process that the package starts to write and upload."""

log = logging.getLogger(__name__)


class WeightsAndBiases:
    """One run there, whose id is the same in each attempt."""

    name = "Weights & Biases"

    def __init__(self, params: WandbParams, identity: Identity, directory: Path) -> None:
        self._params, self._identity, self._directory = params, identity, directory
        self._logged_file = directory / DIRECTORY / LOGGED_FILE
        self._logged: dict[str, int] = {}
        self._unsure: deque[tuple[float, str]] = deque()
        """When, and as which line, records were given that may not be on the disk yet."""
        self._run: Any = None
        self._is_abandoned = False

    def open(self) -> None:
        """Begin the run, or go on with it; offline where nobody answers or knows the key."""
        import wandb

        # A run that went on from a checkpoint measures some steps again, to the same bits. wandb
        # would refuse them aloud, or hold them twice in offline mode.
        self._logged_file.parent.mkdir(exist_ok=True)
        self._logged = _last_steps(self._logged_file)
        with suppress(Exception):  # of a file that can't be read some steps may come twice
            for stream, step in last_steps_offline(self._logged_file.parent).items():
                if step > self._logged.get(stream, 0):
                    self._logged[stream] = step
                    self._unsure.append((0.0, f"{stream} {step}\n"))
        self._note(0.0)  # or an attempt that is killed now would hide that file behind its own
        settings = wandb.Settings(
            console="off",  # train.log is ours
            disable_code=True,
            init_timeout=INIT_TIMEOUT_S,
            quiet=True,
            silent=True,
        )
        if "x_transaction_log_flush_interval" in type(settings).model_fields:  # since 0.31
            settings.x_transaction_log_flush_interval = FLUSH_S
        try:
            self._run = self._begun(wandb, settings, self._params.mode)
        except wandb.Error as error:
            if self._is_abandoned:
                raise
            said = " ".join(str(error).split())[:300]
            text = "%s: %s; records are kept in %s, for wandb sync"
            log.warning(text, self.name, said, self._logged_file.parent)
            _stop_service(wandb)  # which still holds the id
            self._run = self._begun(wandb, settings, "offline")
        # What an attempt that was killed had not written yet, or one before W&B was switched on.
        # Records of this attempt that are among them come once more, and are left out then.
        for record in recorded(self._directory):
            self.log(*record)

    def _begun(self, wandb: Any, settings: Any, mode: str | None) -> Any:
        params, identity = self._params, self._identity
        wandb.setup(settings)  # or it would ask for a missing key, and wait for an answer
        return wandb.init(
            project=params.project,
            entity=params.entity,
            group=params.group or identity.sweep,
            tags=list(params.tags) or None,
            mode=mode,
            id=identity.id,
            name=identity.name,
            resume="allow",
            config=identity.config,
            dir=str(self._directory),
            settings=settings,
        )

    def log(self, stream: str, step: int, metrics: dict[str, float]) -> None:
        """Pass a record on, unless an earlier attempt did."""
        if step <= self._logged.get(stream, 0):
            return
        self._run.log({f"{stream}/{name}": value for name, value in metrics.items()}, step=step)
        self._logged[stream] = step
        now = time.monotonic()
        self._unsure.append((now, f"{stream} {step}\n"))
        self._note(now - 2 * FLUSH_S)

    def _note(self, until: float) -> None:
        """Write down what was given up to a time, which is on the disk."""
        with self._logged_file.open("a", encoding="utf-8") as file:
            while self._unsure and self._unsure[0][0] <= until:
                file.write(self._unsure.popleft()[1])

    def close(self) -> None:
        """Upload what is left."""
        self._run.finish()
        self._note(time.monotonic())

    def abandon(self) -> None:
        """End the package's own process, for which Python would wait at its end, maybe for hours.

        What it has not uploaded lies in its directory, for ``wandb sync``.
        """
        import wandb

        self._is_abandoned = True
        _stop_service(wandb)


def _stop_service(wandb: Any) -> None:
    """End the package's process without waiting for it, and let the package forget it."""
    for process in _children(SERVICE):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    with suppress(Exception, SystemExit):  # it says that the process is gone, or ends as that did
        wandb.teardown(1)


def _children(name: str) -> list[int]:
    """Return the ids of this process's children of that name."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended just now
            said, _, rest = process.joinpath("stat").read_text().rpartition(")")
            if said.partition("(")[2] == name and int(rest.split()[1]) == os.getpid():
                found.append(int(process.name))
    return found


def _last_steps(file: Path) -> dict[str, int]:
    """Return the last step of each stream in the file; a torn last line does not count."""
    if not file.exists():
        return {}
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    pairs = (line.rsplit(" ", 1) for line in lines if " " in line)
    return {stream: int(step) for stream, step in pairs if step.isdecimal()}
