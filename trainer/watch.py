"""Whether losses and gradients are finite, and what becomes of a step where one is not.

A non-finite loss or gradient would go into weights and optimizer state for good. Where reading a
number is free, every step is looked at before it is taken. On CUDA a read waits for the device:

skip      has to know before the step, so that there is one wait in each, and the device idles
          while the host queues what follows
diverge   takes the step and reads where the host waits anyway, before a record, a validation or a
          checkpoint, and every 256 steps; weights that it has ruined are never saved

The gradient is judged by its norm, which must be finite in fp32. Loss and norm are those of all
ranks, so that the ranks decide alike.
"""

from __future__ import annotations

import logging
import math

import torch

from trainer.config import TrainingParams

UNREAD = 256
"""Steps whose numbers wait on the device at most."""

log = logging.getLogger(__name__)


class Watch:
    """Looks at every step's loss and gradient norm, now or later."""

    def __init__(self, params: TrainingParams, total_steps: int, *, reads_are_free: bool) -> None:
        self._params, self._total = params, total_steps
        self._reads_now = reads_are_free or params.non_finite == "skip"
        self._unread: list[tuple[int, torch.Tensor]] = []
        self._fault: str | None = None
        self.skipped = 0
        """Steps not taken since step 0."""
        self.in_a_row = 0
        """Those of them that came last, one after the other."""

    def lets_pass(self, step: int, loss: torch.Tensor, norm: torch.Tensor) -> bool:
        """Note the numbers of a step, the first being 1, and return whether it may be taken."""
        # Stacked, it is a copy: an optimizer may keep its norm in one place from step to step.
        self._unread.append((step, torch.stack((loss.float(), norm.float()))))
        if not self._reads_now:
            if len(self._unread) >= UNREAD:
                self.fault()
            return True
        what = self._read()
        if what is None:
            self.in_a_row = 0
            return True
        if self._params.non_finite == "skip":
            what = self._skip(what)
        self._fault = self._fault or what
        return False

    def fault(self) -> str | None:
        """Return what ends the run, and at which step; None while nothing does."""
        if self._fault is None:
            self._fault = self._read()
        return self._fault

    def figures(self) -> dict[str, float]:
        """Return what is recorded beside the loss: skipped_steps, where steps may be skipped."""
        return {"skipped_steps": self.skipped} if self._params.non_finite == "skip" else {}

    def _skip(self, what: str) -> str | None:
        """Count a step that is not taken; return why the run ends if it was one too many."""
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row > self._params.max_skipped_steps:
            return f"{what}, the last of {self.in_a_row} such steps in a row"
        log.warning("%s: step skipped, %d so far", what, self.skipped)
        return None

    def _read(self) -> str | None:
        """Read what was noted and say what the first non-finite number is, and where."""
        if not self._unread:
            return None
        steps, numbers = zip(*self._unread, strict=True)
        self._unread.clear()
        for step, (loss, norm) in zip(steps, torch.stack(numbers).tolist(), strict=True):
            if not math.isfinite(loss) or not math.isfinite(norm):
                what = f"gradient norm is {norm}" if math.isfinite(loss) else f"loss is {loss}"
                return f"{what} at step {step} of {self._total}"
        return None
