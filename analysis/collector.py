"""Run directories → store: compares what is there with what has been read, and reads the rest."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from analysis import manifest as manifests
from analysis.assembly import assemble, planned_part, planned_rows, remaining_problems
from analysis.bucket import Built, Job, build
from analysis.discovery import DEFAULT_ROOTS, Discovery, Found, below, default_roots, discover
from analysis.manifest import PLANNED, Manifest, NewerStoreError, Source, StoreError
from analysis.problems import SCHEMA
from analysis.store import (
    RUNS,
    latest_generation,
    problems_file,
    read_problems,
    remove_rubbish,
    write_part,
)
from rundir.errors import UserError
from rundir.files import METRICS_FILE

RUNS_PER_BUCKET = 512
BYTES_PER_BUCKET = 64 << 20
"""Of metrics.jsonl; a bucket of twice as many is split when it is next rewritten."""
BYTES_WORTH_PROCESSES = 64 << 20
"""Starting processes costs half a second, in which one process reads half as much."""

REWRITING = 4
"""Writing a stored byte again costs a quarter of what reading a new one does."""

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


@dataclass
class _Changes:
    fresh: list[Found]
    changed: list[Found]
    unchanged: list[str]
    gone: list[str]
    plans: dict[str, tuple[int, int]]
    nothing: bool


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
        manifest = _load_or_new(store)
        found = discover(paths)
        if not manifest.sources:
            _refuse_empty(found, paths)
        scanned = found.roots if roots else [os.path.realpath(name) for name in DEFAULT_ROOTS]
        changes = _compare(manifest, found, scanned)
        if not changes.nothing:
            try:
                manifest = _update(store, manifest, changes, found, workers, progress)
            except OSError as error:
                raise manifests.unwritable(store, error) from error
        try:
            remove_rubbish(store, manifest)
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
            problems=read_problems(store).num_rows,
            seconds=time.monotonic() - since,
        )


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
        return Manifest(latest_generation(store))


def _compare(manifest: Manifest, found: Discovery, scanned: list[str]) -> _Changes:
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
    return _Changes(fresh, changed, unchanged, gone, plans, nothing and bool(manifest.sources_file))


def _update(
    store: Path,
    manifest: Manifest,
    changes: _Changes,
    found: Discovery,
    workers: int | None,
    progress: Progress | None,
) -> Manifest:
    generation = manifest.generation + 1
    jobs = _plan_jobs(store, manifest, changes, generation)
    touched = {p.file for job in jobs for p in job.parts.values()}
    emptied = _emptied(manifest, changes)
    built = list(_run_jobs(jobs, workers, progress))
    sources = {r: s for r, s in manifest.sources.items() if r not in changes.gone}
    for job in jobs:
        for bucket, runs in job.groups:
            for run in runs:
                if run in sources:
                    sources[run].bucket = bucket
    for result in built:
        sources |= result.sources
    rows, plan_problems = planned_rows(
        changes.plans, {source.directory for source in sources.values()}
    )
    new = Manifest(generation, plans=changes.plans, sources=dict(sorted(sources.items())))
    kept = {
        table: [
            part
            for part in parts
            if part.file not in touched and part.bucket != PLANNED and part.bucket not in emptied
        ]
        for table, parts in manifest.parts.items()
    }
    planned = planned_part(store, rows, generation)
    assemble(store, new, manifest, kept, [*built, planned])
    problems = remaining_problems(store, manifest, built, found, new)
    new.problems_file = problems_file(generation)
    write_part(
        store / new.problems_file,
        pa.Table.from_pylist([asdict(p) for p in [*problems, *plan_problems]], SCHEMA),
    )
    manifests.save(store, new)
    return new


def _emptied(manifest: Manifest, changes: _Changes) -> set[int]:
    """Return the buckets that lose their last run."""
    left = Counter(source.bucket for source in manifest.sources.values())
    left.subtract(Counter(manifest.sources[run].bucket for run in changes.gone))
    return {bucket for bucket, count in left.items() if count == 0}


def _plan_jobs(store: Path, manifest: Manifest, changes: _Changes, generation: int) -> list[Job]:
    """Assign new runs to buckets, and make a job of every bucket that something happens in."""
    sizes = {run: s.files.get(METRICS_FILE, (0, 0))[0] for run, s in manifest.sources.items()}
    sizes |= {
        f.run: f.files.get(METRICS_FILE, (0, 0))[0] for f in [*changes.fresh, *changes.changed]
    }
    gone = set(changes.gone)
    members: dict[int, list[str]] = {}
    for run, source in manifest.sources.items():
        members.setdefault(source.bucket, []).append(run)
    dirty = {manifest.sources[run].bucket for run in changes.gone}
    dirty |= {manifest.sources[here.run].bucket for here in changes.changed}
    members = {b: [run for run in runs if run not in gone] for b, runs in members.items()}
    bucket = max(members, default=0)
    held = sum(sizes[run] for run in members.get(bucket, []))
    for here in changes.fresh:
        if here.run in manifest.sources:
            dirty.add(manifest.sources[here.run].bucket)
            continue
        runs = members.setdefault(bucket, [])
        if len(runs) >= RUNS_PER_BUCKET or held >= BYTES_PER_BUCKET:
            bucket, held = bucket + 1, 0
            runs = members.setdefault(bucket, [])
        runs.append(here.run)
        held += sizes[here.run]
        dirty.add(bucket)
    read = {here.run: here for here in [*changes.fresh, *changes.changed]}
    jobs, unused = [], iter(range(bucket + 1, 1 << 62))
    for number in sorted(b for b in dirty if members.get(b)):
        runs = sorted(members[number])
        jobs.append(
            Job(
                store,
                generation,
                list(_groups(number, runs, sizes, unused)),
                [(read[run], _known(manifest, read[run])) for run in runs if run in read],
                {t: p for t, parts in manifest.parts.items() for p in parts if p.bucket == number},
                manifest.schemas,
                sum(sizes[run] // (1 if run in read else REWRITING) for run in runs),
            )
        )
    return jobs


def _known(manifest: Manifest, here: Found) -> Source | None:
    source = manifest.sources.get(here.run)
    return source if source is not None and source.directory == here.directory else None


def _groups(
    bucket: int, runs: list[str], sizes: dict[str, int], unused: Iterator[int]
) -> Iterator[tuple[int, list[str]]]:
    """Split a bucket that has grown to twice the size that it was meant to have."""
    if sum(sizes[run] for run in runs) < 2 * BYTES_PER_BUCKET:
        yield bucket, runs
        return
    group: list[str] = []
    for run in runs:
        if group and sum(sizes[r] for r in group) + sizes[run] > BYTES_PER_BUCKET:
            yield bucket, group
            bucket, group = next(unused), []
        group.append(run)
    yield bucket, group


def _run_jobs(jobs: list[Job], workers: int | None, progress: Progress | None) -> Iterator[Built]:
    total, done = sum(len(job.changed) for job in jobs), 0
    report = progress or (lambda *_: None)
    report(0, total)
    size = sum(job.work for job in jobs)
    count = min(workers or len(os.sched_getaffinity(0)), len(jobs))
    alone = count < 2 or (workers is None and size < BYTES_WORTH_PROCESSES)
    pool = None if alone else _pool(count)
    if pool is None:
        for job in jobs:
            yield build(job)
            done += len(job.changed)
            report(done, total)
        return
    with pool:
        running = {pool.submit(build, job): job for job in jobs}
        for future in as_completed(running):
            yield future.result()
            done += len(running[future].changed)
            report(done, total)


def _pool(count: int) -> ProcessPoolExecutor | None:
    """Return processes, or None, said on stderr, where the system gives none.

    Processes are spawned: a fork copies the threads of Arrow and of a notebook half-way.
    """
    context = multiprocessing.get_context("spawn")
    pool = None
    try:
        pool = ProcessPoolExecutor(count, context, initializer=_ignore_interrupt)
        pool.submit(os.getpid).result()
    except (OSError, BrokenProcessPool) as error:
        # E.g. a sandbox without semaphores or a limit on processes; neither is the store's fault.
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
        why = getattr(error, "strerror", None) or str(error)
        print(f"collecting in this process alone; no others can be started: {why}", file=sys.stderr)  # noqa: T201
        return None
    return pool


def _ignore_interrupt() -> None:
    """Leave Ctrl-C to the parent, which ends the pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
