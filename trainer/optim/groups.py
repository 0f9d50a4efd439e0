"""Which parameters are matrices and which are everything else: decided here, for all optimizers.

A matrix is a trainable 2-D weight of no embedding, and none of whose names holds an embedding's
word; a weight with more dimensions, such as a convolution's, is everything else. A tied weight has
several names, and is everything else as soon as one of them holds such a word. A rule of the user's
goes before all that.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from torch import nn

from rundir.errors import IllegalValue, nearest
from trainer.optim.params import OptimizerParams

EMBEDDING_WORDS = ("embeddings", "embed_tokens", "wte", "wpe", "lm_head", "embed_out")
"""A weight with one of these in its name maps to or from tokens and is no matrix here. The last is
GPT-NeoX's head."""

OUTPUT_WORD = "lm_head"
"""The one of them that maps to tokens."""


@dataclass(frozen=True)
class Split:
    """A model's trainable parameters by name, in the model's order."""

    matrices: dict[str, nn.Parameter]
    rest: dict[str, nn.Parameter]


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that take part in training, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def names_of(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Return each trainable parameter's names, in the model's order; tied ones have several."""
    names = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names[parameter].append(name)
    return dict(names)


def output_weights(model: nn.Module) -> set[nn.Parameter]:
    """Return the trainable 2-D weights that map to tokens and, tied to nothing, do only that."""
    return {
        parameter
        for parameter, names in names_of(model).items()
        if parameter.ndim == 2 and all(OUTPUT_WORD in name for name in names)
    }


def split_parameters(model: nn.Module, params: OptimizerParams | None = None) -> Split:
    """Divide the trainable parameters into matrices and the rest.

    Args:
        model: names and shapes are taken from here.
        params: their rules, and whether a matrix must be the weight of a linear layer. An optimizer
            passes its own; without them names and shapes decide.

    Raises:
        UserError: a rule matches nothing, or makes a matrix of what can't be one.
    """
    linear = {module.weight for module in model.modules() if isinstance(module, nn.Linear)}
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    needs_inputs = params is not None and params.NEEDS_INPUTS
    ruled = {} if params is None else ruled_parameters(model, params)
    split = Split({}, {})
    for parameter, names in names_of(model).items():
        fits = parameter.ndim == 2 and (not needs_inputs or parameter in linear)
        number = ruled.get(parameter)
        kind = None if params is None or number is None else params.groups[number].kind
        if kind == "matrix" and not fits:
            fault = (
                "is of no linear layer, whose inputs are looked at"
                if parameter.ndim == 2
                else f"has {parameter.ndim} dimensions, a matrix 2"
            )
            must = f"rest or null: {names[0]} {fault}"
            raise IllegalValue(f"groups[{number}].kind", kind, must)
        named = any(word in name for name in names for word in EMBEDDING_WORDS)
        embeds = named or parameter in tables
        matrix = fits and not embeds if kind is None else kind == "matrix"
        (split.matrices if matrix else split.rest)[names[0]] = parameter
    return split


def ruled_parameters(model: nn.Module, params: OptimizerParams) -> dict[nn.Parameter, int]:
    """Return the number of the rule that a parameter falls under, for those that fall under one.

    Raises:
        UserError: no parameter falls under a rule.
    """
    ruled: dict[nn.Parameter, int] = {}
    for number, rule in enumerate(params.groups):
        pattern = re.compile(rule.match)
        matched = [
            parameter
            for parameter, names in names_of(model).items()
            if parameter not in ruled and any(map(pattern.search, names))
        ]
        if not matched:
            raise _matches_nothing(model, f"groups[{number}].match", rule.match)
        ruled |= dict.fromkeys(matched, number)
    return ruled


def _matches_nothing(model: nn.Module, key: str, pattern: str) -> IllegalValue:
    words = {word for names in names_of(model).values() for n in names for word in n.split(".")}
    guess = nearest(pattern, words)
    hint = f"; did you mean {guess}?" if guess else ""
    must = f"part of the name of a trainable parameter that no earlier group has{hint}"
    return IllegalValue(key, pattern, must)
