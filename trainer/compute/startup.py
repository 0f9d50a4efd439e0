"""What need not happen before the first step.

torch's optimizers import torch._dynamo, the front end of torch.compile, as soon as one is built:
1.2 s of processor time, more than torch itself takes and a third of a short run. All they want of
it is that whoever compiles an optimizer leaves some methods out. Nothing here compiles optimizers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

_METHODS = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
"""Those of an optimizer that import torch._dynamo at their first call."""


def spare_dynamo() -> None:
    """Let optimizers be built, and their gradients be dropped, without torch._dynamo.

    Where torch has been written anew and keeps nothing under these names, only time is lost.
    """
    for name in _METHODS:
        plain = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if plain is not None:
            vars(plain).setdefault("__dynamo_disable", plain)


def step_plainly(step: Callable[..., Any], closure: Callable[[], Any] | None) -> Any:
    """Call a bound ``step`` of torch's, without the graph break around it.

    The break, for who compiles the step, is what imports torch._dynamo. The gradients of the step
    itself are off, as the wrapper has them.
    """
    plain = getattr(step, "__wrapped__", None)
    if plain is None or "torch._dynamo" in sys.modules:
        return step(closure)
    with torch.no_grad():
        return plain(step.__self__, closure)  # type: ignore[attr-defined]
