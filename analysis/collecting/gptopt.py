"""GPT-opt's results: one JSON of lists beside Hydra's snapshot, ``<optimizer>-….json``.

    losses, grad_norms, step_times   one value a step: train.loss, .grad_norm, .step_time (s)
    learning_rates                   one value a step and parameter group: lr, lr_1, lr_2, …
    val_losses                       every ``val_step`` steps of an epoch, and once more at its end
    step_size_list                   where the optimizer has one: train.step_size

The file has no steps and no times, so steps are counted, and ``t`` is null. A list of another name
is taken for a metric of the train stream if it has a value for every step. Whatever cannot be
placed becomes a stream of its own under the list's name, by position, and a problem row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.collecting.discovery import Found, is_results
from analysis.collecting.metrics import Record, Typed, fault_of_stream, table_of_records
from analysis.collecting.runrecord import UNTAKEN, json_object, read_bytes, reason_of
from analysis.parquet.columns import KEYS
from analysis.parquet.problems import Problem, clip

LARGEST_RESULTS = 256 << 20
"""A million steps of five lists take a hundred megabytes."""

_PER_STEP = {
    "losses": "loss",
    "train_losses": "loss",
    "grad_norms": "grad_norm",
    "step_times": "step_time",
    "step_size_list": "step_size",
    "step_sizes": "step_size",
}
_RATES, _VALIDATION = ("learning_rates", "lrs"), ("val_losses", "val_loss")
_KNOWN = frozenset({*_PER_STEP, *_RATES, *_VALIDATION})
_UNPLACED = "are at unknown steps; kept in the stream {name} by position"

Lists = dict[str, list[Any]]


def read_results(
    found: Found, config: Mapping[str, Any]
) -> tuple[dict[str, list[Typed]], list[Problem]]:
    """Return the tables of a run by stream, and what was not understood.

    Of several files the newest counts; the others are named among the problems.

    Args:
        found: the run; its files tell of the results.
        config: its row, with the config's values under ``config.…``.
    """
    problems: list[Problem] = []
    names = sorted(filter(is_results, found.files), key=lambda n: (found.files[n][1], n))
    while names:
        name = names.pop()
        lists = _lists(found, name, problems)
        if lists is None:
            continue
        for other in names:
            detail = f"older than {name}, which was read"
            problems.append(Problem(found.run, other, None, "results", clip(detail)))
        said: list[str] = []
        records = _records(lists, config, said)
        problems += [Problem(found.run, name, None, "results", clip(text)) for text in said]
        return {s: [table_of_records(rows)] for s, rows in records.items()}, problems
    return {}, problems


def _lists(found: Found, name: str, problems: list[Problem]) -> Lists | None:
    try:
        content = read_bytes(f"{found.directory}/{name}", found.files[name], LARGEST_RESULTS)
        value = json_object(content)
    except UNTAKEN as error:
        kind = "unreadable" if isinstance(error, OSError) else "results"
        problems.append(Problem(found.run, name, None, kind, reason_of(error)))
        return None
    lists = {key: item for key, item in value.items() if isinstance(item, list)}
    details = [
        f"{key} = {item!r}; not understood"
        for key, item in value.items()
        if key != "name" and key not in lists
    ]
    if not _KNOWN & lists.keys():
        details = [f"holds none of: {', '.join(sorted(_KNOWN))}; not read"]
    problems += [Problem(found.run, name, None, "results", clip(text)) for text in details]
    return lists if _KNOWN & lists.keys() else None


def _records(lists: Lists, config: Mapping[str, Any], said: list[str]) -> dict[str, list[Record]]:
    """Place every list; what that leaves open is said."""
    steps = len(lists.get("losses") or lists.get("train_losses") or lists.get("step_times") or ())
    train: dict[str, list[Any]] = {}
    streams: dict[str, list[Record]] = {}
    for name, values in lists.items():
        if name in _RATES and steps and len(values) % steps == 0:
            groups = len(values) // steps
            for group in range(groups):
                train["lr" if group == 0 else f"lr_{group}"] = values[group::groups]
        elif name in _VALIDATION:
            _add_validation(name, values, steps, config, streams, said)
        elif len(values) == steps and name not in _RATES:
            metric = _PER_STEP.get(name, name)
            train[f"metric.{metric}" if metric in KEYS else metric] = values
        elif values:
            said.append(
                f"{name} has {len(values)} values for {steps} steps; they "
                + _UNPLACED.format(name=name)
            )
            _add_by_position(name, values, streams, said)
    if train:
        columns = list(train.items())
        streams["train"] = [
            _at(step + 1, {metric: values[step] for metric, values in columns})
            for step in range(steps)
        ]
    return streams


def _add_validation(
    name: str,
    values: list[Any],
    steps: int,
    config: Mapping[str, Any],
    streams: dict[str, list[Record]],
    said: list[str],
) -> None:
    if not values:
        return
    places = _validation_steps(len(values), steps, config)
    if places is None:
        said.append(
            f"{len(values)} {name} {_UNPLACED.format(name=name)}; the last is the final one"
        )
        _add_by_position(name, values, streams, said)
        values, places = values[-1:], [steps]
    streams["val"] = [
        _at(step, {"loss": value}) for step, value in zip(places, values, strict=True)
    ]


def _validation_steps(count: int, steps: int, config: Mapping[str, Any]) -> Sequence[int] | None:
    """Return the step of each validation, or None where the config does not explain their number.

    GPT-opt validates at every multiple of ``val_step`` within an epoch and after each epoch.
    """
    if count == 1:
        return [steps]
    every, epochs = _setting("val_step", config), _setting("num_epochs", config) or 1
    if every is None or steps % epochs:
        return None
    length = steps // epochs
    within = [
        [start + step for step in range(every, length + 1, every)]
        for start in range(0, steps, length or 1)
    ]
    regular = [step for epoch in within for step in epoch]
    whole = [
        s
        for epoch, end in zip(within, range(length, steps + 1, length or 1), strict=True)
        for s in (*epoch, end)
    ]
    return next((places for places in (whole, regular) if len(places) == count), None)


def _setting(name: str, config: Mapping[str, Any]) -> int | None:
    """Return the only positive whole number that the config has under this last name."""
    found = [v for k, v in config.items() if k.startswith("config.") and k.endswith(f".{name}")]
    value = found[0] if found and all(other == found[0] for other in found) else None
    return value if type(value) is int and value > 0 else None


def _add_by_position(
    name: str, values: list[Any], streams: dict[str, list[Record]], said: list[str]
) -> None:
    fault = fault_of_stream(name)
    if fault is not None or name in {"train", "val"}:
        said.append(f"{name}: {fault or 'is the name of another stream'}; not read")
        return
    streams[name] = [_at(place + 1, {"value": value}) for place, value in enumerate(values)]


def _at(step: int, metrics: dict[str, Any]) -> Record:
    return {"step": step, "t": None, "attempt": 1, **metrics}
