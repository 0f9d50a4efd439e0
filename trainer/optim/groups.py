"""Which parameters are matrices and which are everything else: decided here, and shown in the log.

A matrix is a trainable 2-D weight none of whose names holds an embedding's word. A tied weight has
several names, and is everything else as soon as one of them does.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass

from torch import nn

EMBEDDING_WORDS = ("embeddings", "embed_tokens", "wte", "wpe", "lm_head")
"""A weight with one of these in its name maps to or from tokens and is no matrix here."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """A model's trainable parameters by name, in the model's order."""

    matrices: dict[str, nn.Parameter]
    rest: dict[str, nn.Parameter]

    def table(self) -> str:
        """One line for each kind of parameter; layers that differ in a number are one kind."""
        kinds: Counter[tuple[str, str, str]] = Counter()
        sizes: Counter[tuple[str, str, str]] = Counter()
        for label, members in (("matrix", self.matrices), ("rest", self.rest)):
            for name, parameter in members.items():
                shape = "x".join(map(str, parameter.shape)) or "scalar"
                kind = (label, re.sub(r"(?<=\.)\d+(?=\.)", "*", name), shape)
                kinds[kind] += 1
                sizes[kind] += parameter.numel()
        rows = [("group", "name", "shape", "count", "weights")]
        rows += [(*kind, str(count), str(sizes[kind])) for kind, count in kinds.items()]
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = (
            [f"{row[0]:<{widths[0]}}", f"{row[1]:<{widths[1]}}", f"{row[2]:<{widths[2]}}"]
            + [f"{row[i]:>{widths[i]}}" for i in (3, 4)]
            for row in rows
        )
        return "\n".join("  ".join(line) for line in lines)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that take part in training, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def split_parameters(model: nn.Module, *, of_linear_layers: bool = False) -> Split:
    """Divide the trainable parameters into matrices and the rest, and log the table.

    Args:
        model: names and shapes are taken from here.
        of_linear_layers: matrices must be weights of ``nn.Linear``, for an optimizer that looks at
            the layers' inputs.
    """
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    embeddings = {
        id(parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if any(word in name for word in EMBEDDING_WORDS)
    }
    split = Split({}, {})
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        matrix = parameter.ndim == 2 and id(parameter) not in embeddings
        matrix = matrix and (not of_linear_layers or id(parameter) in linear)
        (split.matrices if matrix else split.rest)[name] = parameter
    _log.info("parameter groups\n%s", split.table())
    return split
