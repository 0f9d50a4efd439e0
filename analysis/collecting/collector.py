"""Run directories → store: compares what is there with what has been read, and reads the rest.

Arrow is loaded when there is something to read: it takes longer than finding that there is not.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from analysis.collecting.changes import compare
from analysis.collecting.discovery import DEFAULT_ROOTS, Discovery, default_roots, discover
from analysis.parquet import manifest as manifests
from analysis.parquet.manifest import PLANNED, RUNS, Manifest, NewerStoreError, StoreError
from rundir.errors import UserError

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Summary:
    """What a collect did, in runs, and the number of problems in the store."""

    new: int
    changed: int
    unchanged: int
    gone: int
    planned: int
    """Runs of a plan that have no directory yet."""
    problems: int
    seconds: float

    def __str__(self) -> str:
        counts = [f"{self.new} new", f"{self.changed} changed", f"{self.unchanged} unchanged"]
        counts += [f"{self.gone} gone"] if self.gone else []
        counts += [f"{self.planned} not started"] if self.planned else []
        noun = "problem" if self.problems == 1 else "problems"
        return f"{', '.join(counts)}, {self.problems} {noun} in {self.seconds:.1f} s"


def collect(
    roots: Sequence[Path | str] | None = None,
    store: Path | str = "store",
    *,
    wait: bool = True,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Bring the store up to date with the run directories below the roots.

    Reads only what is new since the last time. Runs below other roots stay as they are; a run
    whose directory is gone leaves the store. Killed at any moment, it leaves the store as it was.

    Args:
        roots: directories with run directories at any depth; ``outputs`` and ``multirun`` by
            default.
        store: directory of the store, created if needed.
        wait: wait for another collector instead of raising.
        workers: processes; one per core by default, none for little data.
        progress: called with runs done and runs to do.

    Raises:
        UserError: nothing to collect, or a store that cannot be written or is of a newer format.
    """
    since = time.monotonic()
    paths = [Path(root) for root in roots] if roots else default_roots()
    store = Path(store)
    if not store.exists():
        _refuse_empty(discover(paths), paths)
    with manifests.locked(store, wait):
        with _without_garbage_collection():
            manifest = _load_or_new(store)
            found = discover(paths)
            if not manifest.sources:
                _refuse_empty(found, paths)
            scanned = found.roots if roots else [os.path.realpath(name) for name in DEFAULT_ROOTS]
            changes = compare(manifest, found, scanned)
        if not changes.nothing:
            from analysis.collecting.update import update

            try:
                manifest = update(store, manifest, changes, found, workers, progress)
            except OSError as error:
                raise manifests.unwritable(store, error) from error
        try:
            manifests.remove_rubbish(store, manifest)
            manifests.touch(store)
        except OSError as error:
            raise manifests.unwritable(store, error) from error
        planned = sum(p.rows for p in manifest.parts.get(RUNS, []) if p.bucket == PLANNED)
        return Summary(
            new=len(changes.fresh),
            changed=len(changes.changed),
            unchanged=len(changes.unchanged),
            gone=len(changes.gone),
            planned=planned,
            problems=manifest.problems,
            seconds=time.monotonic() - since,
        )


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Let a hundred thousand small objects be made without looking for cycles among them.

    That takes half of the time of a collect that finds nothing new.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _refuse_empty(found: Discovery, paths: list[Path]) -> None:
    if not found.runs and not found.plans:
        names = ", ".join(map(str, paths))
        raise UserError(f"roots = {names}; must hold run directories; none was found below")


def _load_or_new(store: Path) -> Manifest:
    try:
        return manifests.load(store, sources=True)
    except NewerStoreError:
        raise
    except StoreError:
        # Names that were never used: until the new manifest is in place, whatever the old one, or
        # a reader at work, still refers to stays as it is.
        return Manifest(manifests.latest_generation(store))
