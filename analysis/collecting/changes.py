"""Run directories against the store: which runs are new, changed, as they were, or gone."""

from __future__ import annotations

import os
from dataclasses import dataclass

from analysis.collecting.discovery import Discovery, Found, below
from analysis.parquet.manifest import Manifest, Stamp
from rundir.errors import UserError


@dataclass
class Changes:
    """What a collect has to do."""

    fresh: list[Found]
    changed: list[Found]
    unchanged: list[str]
    gone: list[str]
    plans: dict[str, Stamp]
    """All that count from now on."""
    nothing: bool
    """The store is up to date."""


def compare(manifest: Manifest, found: Discovery, scanned: list[str]) -> Changes:
    """Compare what the walk found with what the store has read.

    Args:
        manifest: with its sources.
        found: what lies below the roots.
        scanned: absolute paths of the roots; runs elsewhere stay as they are.

    Raises:
        UserError: a run's id names two directories that both exist.
    """
    fresh, changed, unchanged = [], [], []
    for run, here in found.runs.items():
        source = manifest.sources.get(run)
        if source is None or source.directory != here.directory:
            if source is not None and os.path.isdir(source.directory):
                both = f"{source.directory} and {here.directory}"
                raise UserError(f"run = {run}; names both {both}; collect them into two stores")
            fresh.append(here)
        elif source.files == here.files:
            unchanged.append(run)
        else:
            changed.append(here)
    hidden = [directory for directory, _ in found.unreadable]
    gone = []
    for run, source in manifest.sources.items():
        if run in found.runs:
            continue
        if not below(source.directory, scanned) or below(source.directory, hidden):
            unchanged.append(run)
        else:
            gone.append(run)
    plans = {p: s for p, s in manifest.plans.items() if not below(p, scanned)} | found.plans
    nothing = not (fresh or changed or gone) and plans == manifest.plans and not hidden
    fresh.sort(key=lambda here: here.run)
    return Changes(fresh, changed, unchanged, gone, plans, nothing and bool(manifest.sources_file))
