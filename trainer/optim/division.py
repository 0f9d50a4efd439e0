"""An optimizer's groups, divided further: by the user's rules, and by width under muP.

It happens after the optimizer is built and before its first step, so that no optimizer has to know:
a group's options are copied into its parts, and each part has its own ``lr`` and ``weight_decay``.
"""

from __future__ import annotations

import copy
import re
from collections import Counter, defaultdict
from typing import Any

import torch
from torch import nn

from rundir.errors import IllegalValue
from trainer.optim.groups import names_of, output_weights, ruled_parameters, split_parameters
from trainer.optim.params import OptimizerParams
from trainer.optim.params.rules import GroupRule

Group = dict[str, Any]


def divide_groups(
    optimizer: torch.optim.Optimizer, model: nn.Module, params: OptimizerParams
) -> None:
    """Divide the groups so that all of a part fall under one rule and one factor of the width.

    Raises:
        UserError: a rule matches nothing, or the model does not say how wide it is.
    """
    ruled = ruled_parameters(model, params)
    factors = width_factors(model, params)
    divided = []
    for group in optimizer.param_groups:
        parts: dict[tuple[int | None, float], list[nn.Parameter]] = defaultdict(list)
        for weight in group["params"]:
            parts[ruled.get(weight), factors[weight]].append(weight)
        for (number, factor), weights in parts.items():
            rule = None if number is None else params.groups[number]
            decay = 1.0 if params.normalizes_decay else factor
            divided.append(_part(group, weights, rule, factor, decay))
    optimizer.param_groups[:] = divided


def _part(
    group: Group, weights: list[nn.Parameter], rule: GroupRule | None, lr: float, decay: float
) -> Group:
    """Return a part whose learning rate is multiplied by ``lr``, its decay divided by ``decay``."""
    options = {key: value for key, value in group.items() if key != "params"}
    part = {"params": weights, **copy.deepcopy(options)}
    if rule is not None:
        part["lr"] *= rule.lr_scale
        if rule.weight_decay is not None:
            part["weight_decay"] = rule.weight_decay
    part["lr"] *= lr
    part["weight_decay"] /= decay
    return part


def width_factors(model: nn.Module, params: OptimizerParams) -> dict[nn.Parameter, float]:
    """Return what muP multiplies each trainable weight's learning rate by.

    Weight decay is divided by it: a step then shrinks weights as much at any width, as with the
    paper's own code. One that the step normalizes away is left alone.

    Raises:
        UserError: the model does not say how wide it is, or no rule is known for the optimizer.
    """
    shape = getattr(model, "config", None)
    base = params.mup_base_n_embd or getattr(shape, "enable_mup_with_base_n_embd", None)
    if base is None:
        return dict.fromkeys(names_of(model), 1.0)
    width = getattr(shape, "n_embd", None)
    if not isinstance(width, int):
        raise IllegalValue("mup_base_n_embd", base, "null: the model has no config.n_embd")
    if params.width_powers is None:
        must = f"null: for {params.name} no rule is known"
        raise IllegalValue("enable_mup_with_base_n_embd", base, must)
    of_matrices, of_output, of_rest = (
        float((base / width) ** power) for power in params.width_powers
    )
    factors = dict.fromkeys(names_of(model), of_rest)
    factors |= dict.fromkeys(output_weights(model), of_output)
    return factors | dict.fromkeys(split_parameters(model, params).matrices.values(), of_matrices)


def group_table(optimizer: torch.optim.Optimizer, model: nn.Module, params: OptimizerParams) -> str:
    """Return a line for each kind of parameter; layers that differ in a number are one kind.

    The learning rate is that before the schedule's factor.
    """
    matrices = set(split_parameters(model, params).matrices.values())
    names = names_of(model)
    counts: Counter[tuple[str, ...]] = Counter()
    sizes: Counter[tuple[str, ...]] = Counter()
    settings = {}
    # Without lmo the scale is a root, since it enters a step twice.
    power = 1 if getattr(params, "lmo", True) else 2
    for number, group in enumerate(optimizer.param_groups):
        # Users tune lr times this scale: it is what muon_lr and muon_lr_ratio become.
        lr = group["lr"] * group.get("scale", 1.0) ** power
        for weight in group["params"]:
            kind = "matrix" if weight in matrices else "rest"
            name = re.sub(r"(?<=\.)\d+(?=\.)", "*", names[weight][0])
            shape = "x".join(map(str, weight.shape)) or "scalar"
            row: tuple[str, ...] = (str(number), kind, name, shape)
            counts[row] += 1
            sizes[row] += weight.numel()
            settings[row] = (f"{lr:.6g}", f"{group['weight_decay']:.6g}")
    head = ("group", "kind", "name", "shape", "count", "weights", "lr", "weight decay")
    rows = [(*row, str(counts[row]), str(sizes[row]), *settings[row]) for row in counts]
    return _aligned([head, *rows], words=4)


def _aligned(rows: list[tuple[str, ...]], words: int) -> str:
    """Return the rows as lines, the first ``words`` columns flush left and the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def group_record(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> dict[str, tuple[int, float, float]]:
    """Return the group, initial learning rate and weight decay of each parameter by name."""
    names = names_of(model)
    return {
        names[weight][0]: (number, float(group["initial_lr"]), float(group["weight_decay"]))
        for number, group in enumerate(optimizer.param_groups)
        for weight in group["params"]
    }


def with_our_options(optimizer: torch.optim.Optimizer, saved: Group) -> Group:
    """Return a state whose groups have the options of an optimizer's, not those it was saved with.

    Some options are in the groups and some in the optimizer: without this the former would be the
    checkpoint's and the latter the configuration's.
    """
    theirs = saved["param_groups"]
    ours = optimizer.param_groups
    if len(theirs) != len(ours):  # torch says so
        return saved
    groups = [
        {**group, "params": other["params"]} for group, other in zip(ours, theirs, strict=True)
    ]
    return {**saved, "param_groups": groups}
