"""The runs that a launch asks for: each composed, checked, signed and named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import Override

from rundir import UserError
from sweeps.define.definition import Point
from sweeps.define.overrides import parse, setting, shown
from sweeps.planning import tasks
from sweeps.planning.composition import Composer
from sweeps.planning.identity import run_name, signature, varying_keys
from sweeps.planning.plan import Candidate, PlanBase


def candidates(
    composer: Composer,
    sweep: str,
    points: Sequence[Point],
    fixed: Sequence[str],
    *,
    here: bool = True,
) -> list[Candidate]:
    """Compose and check every point.

    Args:
        composer: composes the runs.
        sweep: its name, for messages.
        points: what differs between the runs.
        fixed: the overrides that all share.
        here: whether the runs are to be carried out on this machine.

    Raises:
        UserError: the first run that can't be composed or fails its check, or is there twice.
    """
    vary = varying_keys(points)
    shared = [parse(text) for text in fixed]
    bases: dict[tuple[str, ...], PlanBase] = {}
    found: dict[str, Candidate] = {}
    known: dict[str, Point] = {}
    for point in points:
        overrides = [*shared, *(setting(key, value) for key, value in point.items())]
        groups, resolved = _checked(composer, point, overrides, here=here)
        signed = signature(resolved)
        varying = {key: point[key] for key in vary if key in point}
        if signed in found:
            raise _twice(sweep, known[signed], point)
        if groups not in bases:
            bases[groups] = PlanBase(groups, *composer.base(groups).yaml)
        known[signed] = point
        found[signed] = Candidate(
            signed,
            *place(resolved, varying, signed),
            overrides=tuple(str(one.input_line) for one in overrides),
            varying=varying,
            base=bases[groups],
            cluster=dict(resolved.get("cluster") or {}),
            task=str(resolved["task"]),
        )
    return list(found.values())


def _twice(sweep: str, first: Point, second: Point) -> UserError:
    idle = [key for key in {**first, **second} if first.get(key) != second.get(key)]
    why = f" ({', '.join(idle)} makes no difference to the result)" if idle else ""
    return UserError(
        f"sweep {sweep}: runs ({shown(first)}) and ({shown(second)}) are the same run{why}; "
        "remove one"
    )


def _checked(
    composer: Composer, point: Point, overrides: Sequence[Override], *, here: bool
) -> tuple[tuple[str, ...], dict[str, Any]]:
    try:
        groups, resolved = composer.resolved(overrides)
        tasks.check(resolved, here=here)
    except UserError as error:
        if not point:
            raise
        raise UserError(f"run ({shown(point)}): {error}") from error
    return groups, resolved


def place(resolved: dict[str, Any], varying: dict[str, Any], signed: str) -> tuple[str, str]:
    """Return a run's name and its directory below ``paths.outputs`` or the sweep.

    ``paths.group`` gives the folders above the run, e.g. ``<model>/<dataset>/<optimizer>``; what
    varies there is not repeated in the name.
    """
    paths = resolved.get("paths") or {}
    group = str(paths.get("group") or "")
    if group.startswith("/") or ".." in group.split("/"):
        raise UserError(f"paths.group = {group!r}; must be a relative path without ..")
    folders = group.split("/")
    rest = {k: v for k, v in varying.items() if str(v) not in folders or "." in k}
    name = run_name(rest, signed, title=paths.get("run_name"))
    return name, f"{group}/{name}" if group else name
