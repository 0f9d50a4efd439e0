"""What has changed → new parts, and a manifest that names them."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from analysis.collecting.assembly import assemble, planned_part, planned_rows, remaining_problems
from analysis.collecting.bucket import Built, Job, build
from analysis.collecting.changes import Changes
from analysis.collecting.discovery import Discovery, Found
from analysis.collecting.forgone import forgo_pandas
from analysis.parquet import manifest as manifests
from analysis.parquet.manifest import PLANNED, Manifest, Part, Source
from analysis.parquet.parts import problems_file, write_part
from analysis.parquet.problems import SCHEMA
from rundir.errors import tell
from rundir.files import METRICS_FILE

RUNS_PER_BUCKET = 512
BYTES_PER_BUCKET = 64 << 20
"""Of metrics.jsonl; a bucket of twice as many is split when it is next rewritten."""
BYTES_WORTH_PROCESSES = 64 << 20
"""Starting processes costs half a second, in which one process reads half as much."""

STORED = 16
"""A byte whose line is in the store costs a sixteenth of what a new one does."""

Progress = Callable[[int, int], None]


def update(
    store: Path,
    manifest: Manifest,
    changes: Changes,
    found: Discovery,
    workers: int | None,
    progress: Progress | None,
) -> Manifest:
    """Write what has changed, and return the manifest that is now in its place. Raises OSError."""
    generation = manifest.generation + 1
    jobs = _plan_jobs(store, manifest, changes, generation)
    emptied = _emptied(manifest, changes)
    built = list(_run_jobs(jobs, workers, progress))
    touched = {p.file for job in jobs for parts in job.parts.values() for p in parts}
    touched -= {file for result in built for file in result.kept}
    sources = {r: s for r, s in manifest.sources.items() if r not in changes.gone}
    for job in jobs:
        for bucket, runs in job.groups:
            for run in runs:
                if run in sources:
                    sources[run].bucket = bucket
    for result in built:
        sources |= result.sources
    missing, plan_problems = planned_rows(
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
    planned = planned_part(store, missing, generation)
    assemble(store, new, manifest, kept, [*built, planned])
    problems = remaining_problems(store, manifest, built, found, new)
    problems += plan_problems
    new.problems_file, new.problems = problems_file(generation), len(problems)
    rows = [asdict(problem) for problem in problems]
    write_part(store / new.problems_file, pa.Table.from_pylist(rows, SCHEMA))
    manifests.save(store, new)
    return new


def _emptied(manifest: Manifest, changes: Changes) -> set[int]:
    """Return the buckets that lose their last run."""
    left = Counter(source.bucket for source in manifest.sources.values())
    left.subtract(Counter(manifest.sources[run].bucket for run in changes.gone))
    return {bucket for bucket, count in left.items() if count == 0}


def _plan_jobs(store: Path, manifest: Manifest, changes: Changes, generation: int) -> list[Job]:
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
    parts_of: dict[int, dict[str, list[Part]]] = {}
    for table, parts in manifest.parts.items():
        for part in parts:
            parts_of.setdefault(part.bucket, {}).setdefault(table, []).append(part)
    jobs, unused = [], iter(range(bucket + 1, 1 << 62))
    for number in sorted(b for b in dirty if members.get(b)):
        runs = sorted(members[number])
        changed = [(read[run], _known(manifest, read[run])) for run in runs if run in read]
        jobs.append(
            Job(
                store,
                generation,
                list(_groups(number, runs, sizes, unused)),
                changed,
                parts_of.get(number, {}),
                manifest.schemas,
                sum(sizes[run] // STORED for run in runs) + sum(_to_read(*p) for p in changed),
            )
        )
    return jobs


def _known(manifest: Manifest, here: Found) -> Source | None:
    source = manifest.sources.get(here.run)
    return source if source is not None and source.directory == here.directory else None


def _to_read(here: Found, source: Source | None) -> int:
    """Return about how many bytes of metrics are new."""
    size, _ = here.files.get(METRICS_FILE, (0, 0))
    return size if source is None or size < source.offset else size - source.offset


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
        pool = ProcessPoolExecutor(count, context, initializer=_prepare)
        pool.submit(os.getpid).result()
    except (OSError, BrokenProcessPool) as error:
        # E.g. a sandbox without semaphores or a limit on processes; neither is the store's fault.
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
        why = getattr(error, "strerror", None) or str(error)
        tell(f"collecting in this process alone; no others can be started: {why}")
        return None
    return pool


def _prepare() -> None:
    """Leave Ctrl-C to the parent, which ends the pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    forgo_pandas()
