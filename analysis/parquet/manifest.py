"""store/manifest.json: which parts are live, what their columns are, what has been read so far.

What has been read stands in a file of its own, which the manifest names: a table is opened without
parsing the state of 10,000 run directories, and one rename still makes all of a collect visible.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rundir import files
from rundir.errors import UserError, tell

if TYPE_CHECKING:
    from analysis.parquet.columns import Kind

Stamp = tuple[int, int]
"""Size in bytes and modification time in nanoseconds; (-1, 0) for what is no regular file."""

VERSION = 1
"""A reader refuses a newer one; a collector that finds an older one reads everything anew."""

MANIFEST_FILE = "manifest.json"
LOCK_FILE = ".lock"
RUNS = "runs"
"""The table of runs; every other one is a stream's history."""
POLL_S = 0.2
"""Seconds between two tries for the lock of a collector that is at work."""
PLANNED = -1
"""Bucket of the rows of runs that have no directory yet."""

_GENERATION = re.compile(r"-t?(\d+)(?=[-.])")


@dataclass
class Part:
    """One Parquet file."""

    file: str
    """Relative to the store."""
    rows: int
    bucket: int
    """Runs of one bucket share their parts; none has rows in two buckets.

    It has one part of ``runs``, and of each history one or a few that follow each other: a run's
    steps ascend within a part and from one to the next.
    """


@dataclass
class Source:
    """One run directory as it was when it was last read."""

    directory: str
    bucket: int
    files: dict[str, Stamp]
    offset: int = 0
    """First byte of metrics.jsonl that is not in the store."""
    tail: int = 0
    """CRC-32 of the bytes before ``offset``."""


@dataclass
class Manifest:
    """The whole of manifest.json. Tables are named ``runs`` and ``history/<stream>``."""

    generation: int = 0
    schemas: dict[str, dict[str, Kind]] = field(default_factory=dict)
    parts: dict[str, list[Part]] = field(default_factory=dict)
    plans: dict[str, Stamp] = field(default_factory=dict)
    sources_file: str = ""
    """Relative to the store, as is ``problems_file``."""
    problems_file: str = ""
    problems: int = 0
    """Rows of that file."""
    sources: dict[str, Source] = field(default_factory=dict)
    """By run id; empty unless loaded with ``sources``."""


class StoreError(UserError):
    """There is no manifest, or not one that can be used; the message says what to do."""


def load(store: Path, *, sources: bool = False) -> Manifest:
    """Read the manifest, with the state of every source if asked to.

    Raises:
        StoreError: there is none, it is damaged, or it is of another version.
    """
    path = store / MANIFEST_FILE
    try:
        raw = json.loads(path.read_bytes())
        version = raw["version"]
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            f"store = {store}; holds no {MANIFEST_FILE}; run: python -m analysis collect"
        ) from None
    except OSError as error:
        raise StoreError(f"store = {store}; must be readable; {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise _damaged(store) from None
    if version != VERSION:
        raise NewerStoreError(
            f"{path}: version = {version!r}; must be {VERSION}; "
            "collect into another --store, or update optsweep"
        )
    try:
        manifest = _manifest(raw)
        if sources:
            entries = json.loads((store / manifest.sources_file).read_bytes())
            manifest.sources = {run: _source(entry) for run, entry in entries.items()}
    except (OSError, KeyError, TypeError, AttributeError, ValueError):
        raise _damaged(store) from None
    return manifest


class NewerStoreError(StoreError):
    """Written by another version of optsweep; a collector does not overwrite it."""


def _damaged(store: Path) -> StoreError:
    return StoreError(
        f"store = {store}; its {MANIFEST_FILE} is damaged; run: python -m analysis collect"
    )


def _manifest(raw: dict[str, Any]) -> Manifest:
    return Manifest(
        generation=int(raw["generation"]),
        schemas=raw["schemas"],
        parts={table: [Part(**p) for p in parts] for table, parts in raw["parts"].items()},
        plans={path: (size, mtime) for path, (size, mtime) in raw["plans"].items()},
        sources_file=raw["sources"],
        problems_file=raw["problems"],
        problems=raw["problem_rows"],
    )


def _source(entry: dict[str, Any]) -> Source:
    files = {name: (size, mtime) for name, (size, mtime) in entry["files"].items()}
    return Source(entry["directory"], entry["bucket"], files, entry["offset"], entry["tail"])


def save(store: Path, manifest: Manifest) -> None:
    """Write the sources, then replace the manifest: the step that makes a collect visible."""
    manifest.sources_file = f"sources-{manifest.generation}.json"
    entries = {run: vars(source) for run, source in manifest.sources.items()}
    _write(store / manifest.sources_file, entries)
    record = {
        "version": VERSION,
        "generation": manifest.generation,
        "schemas": manifest.schemas,
        "parts": {table: [vars(p) for p in parts] for table, parts in manifest.parts.items()},
        "plans": manifest.plans,
        "sources": manifest.sources_file,
        "problems": manifest.problems_file,
        "problem_rows": manifest.problems,
    }
    _write(store / MANIFEST_FILE, record)


def _write(path: Path, value: object) -> None:
    with files.replacing(path) as file:
        file.write(json.dumps(value, separators=(",", ":")).encode())


def touch(store: Path) -> None:
    """Note that the store was compared with the run directories just now."""
    os.utime(store / MANIFEST_FILE)


def age_s(store: Path) -> float:
    """Return the seconds since the store was last collected.

    Raises:
        StoreError: there is no store.
    """
    try:
        return time.time() - (store / MANIFEST_FILE).stat().st_mtime
    except OSError:
        load(store)
        raise


def remove_rubbish(store: Path, manifest: Manifest) -> None:
    """Delete what no manifest lists and what killed collectors left half-written.

    Only the holder of the lock may.
    """
    live = {part.file for parts in manifest.parts.values() for part in parts}
    live |= {manifest.sources_file, manifest.problems_file}
    parts, others = ("runs/*part-*", "history/*/*part-*"), ("*sources-*", "*problems-*")
    patterns = (*parts, *others, ".*.json.*")
    for path in {path for pattern in patterns for path in store.glob(pattern)}:
        if path.relative_to(store).as_posix() not in live:
            path.unlink(missing_ok=True)


def latest_generation(store: Path) -> int:
    """Return the highest generation that any file of the store bears in its name; 0 without any."""
    names = (path.name for path in store.glob("**/*-[0-9t]*.*"))
    return max((int(n) for name in names for n in _GENERATION.findall(name)), default=0)


@contextmanager
def locked(store: Path, wait: bool) -> Iterator[None]:
    """Hold the store against other collectors, creating it if needed.

    Args:
        store: the store's directory.
        wait: wait for a collector that is at work, saying so on stderr; else raise.

    Raises:
        UserError: the store cannot be written, or is held and ``wait`` is false.
    """
    with ExitStack() as lock:
        try:
            store.mkdir(parents=True, exist_ok=True)
            holder = lock.enter_context(files.locked(store / LOCK_FILE))
            if holder and not wait:
                raise UserError(f"store = {store}; {holder} is collecting into it")
            if holder:
                tell(f"waiting for {holder}, which is collecting into {store}")
            while holder:
                lock.close()
                time.sleep(POLL_S)
                holder = lock.enter_context(files.locked(store / LOCK_FILE))
        except OSError as error:
            raise unwritable(store, error) from None
        yield


def unwritable(store: Path, error: OSError) -> UserError:
    """Return the error for a store that cannot be written."""
    return UserError(f"store = {store}; must be a writable directory; {error.strerror or error}")
