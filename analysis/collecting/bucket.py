"""One bucket of runs: what changed is read, laid over what the store has, and written as new parts.

Steps that only follow those of the store become a part of their own, and the others stay as they
are, until that has happened ``MOST_PARTS`` times.

Buckets share nothing, so each is built in a process of its own. Memory: the history of one bucket.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.collecting.discovery import Found
from analysis.collecting.gptopt import read_results
from analysis.collecting.metrics import (
    CHUNK_BYTES,
    Reading,
    Typed,
    concatenate,
    parse_together,
    parse_whole,
    read_metrics,
    settle,
    tail_checksum,
)
from analysis.collecting.runrecord import FIXED, read_run
from analysis.collecting.summary import finish, loss_columns, summarise
from analysis.parquet.columns import KEYS, Kind, conform, join, join_schemas, table_of
from analysis.parquet.manifest import RUNS, Part, Source
from analysis.parquet.parts import history_table, part_file, read_part, write_part
from analysis.parquet.problems import Problem
from rundir.files import ENDED, METRICS_FILE

MOST_PARTS = 8
"""Of one bucket's history of a stream; each costs a reader the opening of a file."""
MOST_APPENDED = 0.25
"""Of the stored rows; of more, writing all of them again costs little in comparison."""

_ENDED = {str(state) for state in ENDED}


@dataclass
class Job:
    """What a process needs to build one bucket."""

    store: Path
    generation: int
    groups: list[tuple[int, list[str]]]
    """Buckets to write and their run ids, sorted; more than one when a bucket is split."""
    changed: list[tuple[Found, Source | None]]
    """Runs to read, and how each stood when it was last read."""
    parts: dict[str, list[Part]]
    """Live parts of each table before."""
    schemas: dict[str, dict[str, Kind]]
    work: int
    """About how much there is to do, in bytes of metrics to read."""


@dataclass
class Built:
    """What a process has made of one bucket."""

    parts: dict[str, list[Part]] = field(default_factory=dict)
    schemas: dict[str, dict[str, Kind]] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    restarted: set[str] = field(default_factory=set)
    """Runs whose metrics were read from the first byte."""
    kept: set[str] = field(default_factory=set)
    """Files of the job's parts that stay live."""


def build(job: Job) -> Built:
    """Read the changed runs of a bucket and write its parts.

    Raises:
        OSError: a part of the store cannot be read or written. What is wrong with a run directory
            becomes a problem row.
    """
    built = Built()
    members = sorted(run for _, runs in job.groups for run in runs)
    code_of = {run: code for code, run in enumerate(members)}
    rows: dict[str, dict[str, Any]] = {}
    fresh = _Fresh(built)
    bucket_of = {run: bucket for bucket, runs in job.groups for run in runs}
    for found, source in job.changed:
        rows[found.run], problems = read_run(found)
        built.problems += problems
        new = Source(found.directory, bucket_of[found.run], found.files)
        code = code_of[found.run]
        reading = _read_new(found, source, new, rows[found.run], built)
        if reading is not None and reading.plain:
            fresh.add_plain(code, found.run, reading.plain, reading.offset - len(reading.plain))
        elif reading is not None:
            fresh.add(code, reading.tables)
        if METRICS_FILE not in found.files:
            tables, problems = read_results(found, rows[found.run])
            built.problems += problems
            fresh.add(code, tables)
        built.sources[found.run] = new
    fresh.parse()
    streams = {t.partition("/")[2] for t in job.parts if t != RUNS} | fresh.tables.keys()
    for stream in sorted(streams):
        _build_history(job, built, stream, code_of, fresh.tables.get(stream, []), rows)
    losses = [
        column
        for stream in sorted(streams)
        for schemas in (job.schemas, built.schemas)
        for column in loss_columns(stream, schemas.get(history_table(stream), ()))
    ]
    for row in rows.values():
        finish(row, losses)
    _build_runs(job, built, members, rows)
    return built


class _Fresh:
    """What the store lacks, by stream; column ``run`` holds codes. Each run is added once."""

    def __init__(self, built: Built) -> None:
        self.tables: defaultdict[str, list[Typed]] = defaultdict(list)
        self._built = built
        self._plain: list[tuple[int, str, bytes, int]] = []
        self._bytes = 0

    def add(self, code: int, tables: Mapping[str, list[Typed]]) -> None:
        """Add the tables of a run."""
        for stream, pieces in tables.items():
            for piece, kinds in pieces:
                codes = pa.array(np.full(piece.num_rows, code, np.int32))
                whole = piece.add_column(0, "run", codes)
                self.tables[stream].append((whole, {"run": "string", **kinds}))

    def add_plain(self, code: int, run: str, lines: bytes, offset: int) -> None:
        """Add lines that look plain and begin at the offset."""
        self._plain.append((code, run, lines, offset))
        self._bytes += len(lines)
        if self._bytes >= CHUNK_BYTES:
            self.parse()

    def parse(self) -> None:
        """Parse what was added as lines."""
        plain, self._plain, self._bytes = self._plain, [], 0
        tables = parse_together([(code, lines) for code, _, lines, _ in plain]) if plain else {}
        for stream, table in (tables or {}).items():
            self.tables[stream].append(table)
        for code, run, lines, offset in plain if tables is None else []:
            reading = parse_whole(run, lines, offset)
            self._built.problems += reading.problems
            self.add(code, reading.tables)


def _read_new(
    found: Found, source: Source | None, new: Source, row: dict[str, Any], built: Built
) -> Reading | None:
    """Read the metrics that the store lacks; sets offset and tail of ``new``."""
    stamp = found.files.get(METRICS_FILE)
    path = f"{found.directory}/{METRICS_FILE}"
    try:
        if stamp is None or stamp[0] < 0:
            built.restarted.add(found.run)
            if stamp is not None:
                detail = "no regular file"
                built.problems.append(Problem(found.run, METRICS_FILE, None, "unreadable", detail))
            return None
        if source is not None and _grown(path, source, stamp):
            new.offset, new.tail = source.offset, source.tail
            if stamp == source.files[METRICS_FILE]:
                return None
        else:
            built.restarted.add(found.run)
        reading = read_metrics(found.run, path, new.offset)
        new.offset, new.tail = reading.offset, reading.tail
    except OSError as error:
        detail = error.strerror or str(error)
        built.problems.append(Problem(found.run, METRICS_FILE, None, "unreadable", detail))
        # Without its stamp the file counts as changed, and is tried again next time.
        new.files = {k: v for k, v in new.files.items() if k != METRICS_FILE}
        return None
    built.problems += reading.problems
    torn = stamp[0] - reading.offset
    if torn > 0 and row["state"] in _ENDED:
        detail = f"the last {torn} bytes are no whole line; they wait"
        built.problems.append(Problem(found.run, METRICS_FILE, reading.offset, "torn", detail))
    return reading


def _grown(path: str, source: Source, stamp: tuple[int, int]) -> bool:
    """Say whether the file is as it was, or only longer."""
    before = source.files.get(METRICS_FILE)
    if before is None or stamp == before:
        return before is not None
    longer = stamp[0] > before[0] and stamp[0] >= source.offset
    return longer and tail_checksum(path, source.offset) == source.tail


def _build_history(
    job: Job,
    built: Built,
    stream: str,
    code_of: dict[str, int],
    fresh: list[Typed],
    rows: dict[str, dict[str, Any]],
) -> None:
    table = history_table(stream)
    parts = job.parts.get(table, [])
    stored = [_stored(job, table, part, code_of, built.restarted) for part in parts]
    is_changed = np.zeros(len(code_of), bool)
    is_changed[[code_of[run] for run in rows]] = True
    added = _settled(fresh) if fresh else None
    before = _followed(job, parts, stored, added, is_changed)
    if before is not None:
        built.kept |= {part.file for part in parts}
        merged, kinds = _settled([*before, *([added] if added else [])])
    else:
        merged, kinds = added = _settled([*stored, *fresh])
    members = sorted(code_of)
    for code, summary in summarise(stream, merged, kinds).items():
        if is_changed[code]:
            row = rows[members[code]]
            row |= {"steps": max(summary.pop("steps"), row.get("steps") or 0), **summary}
    if added is not None:
        _write_history(job, built, table, members, added)


def _stored(job: Job, table: str, part: Part, code_of: dict[str, int], dropped: set[str]) -> Typed:
    old = read_part(job.store / part.file)
    kinds = {name: job.schemas[table][name] for name in old.column_names}
    return _recoded(old, code_of, dropped), kinds


def _settled(pieces: list[Typed]) -> Typed:
    merged, kinds = concatenate(pieces)
    return settle(merged.combine_chunks()), kinds


def _followed(
    job: Job,
    parts: list[Part],
    stored: list[Typed],
    added: Typed | None,
    is_changed: np.ndarray[Any, np.dtype[np.bool_]],
) -> list[Typed] | None:
    """Return the stored rows of the changed runs, or None if the parts cannot stay as they are.

    They can if none of their rows is gone, what is new is little, and of each run only steps
    beyond the last stored one. No (run, step) is then in two parts, whoever reads them.
    """
    rows = sum(part.rows for part in parts)
    if len(job.groups) > 1 or not parts or rows > sum(table.num_rows for table, _ in stored):
        return None
    before, last = [], np.full(len(is_changed), np.iinfo(np.int64).min)
    for table, kinds in stored:
        mine = table.filter(pa.array(is_changed[table.column("run").to_numpy()]))
        np.maximum.at(last, mine.column("run").to_numpy(), mine.column("step").to_numpy())
        before.append((mine, kinds))
    if added is None:
        return before
    new, _ = added
    if len(parts) >= MOST_PARTS or new.num_rows > MOST_APPENDED * rows:
        return None
    follows = new.column("step").to_numpy() > last[new.column("run").to_numpy()]
    return before if follows.all() else None


def _write_history(job: Job, built: Built, name: str, members: list[str], added: Typed) -> None:
    """Write rows as a part of each bucket that has any, in the store's types where they join."""
    table, kinds = added
    schema = job.schemas.get(name, {})
    joined = {column: join(schema.get(column, "null"), kind) for column, kind in kinds.items()}
    table = conform(table, kinds, joined)
    codes = table.column("run").to_numpy()
    run = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(members, pa.string()))
    whole = table.set_column(0, "run", run)
    for bucket, runs in job.groups:
        first, last = members.index(runs[0]), members.index(runs[-1])
        low, high = np.searchsorted(codes, [first, last + 1])
        if high > low:
            _write(job, built, name, bucket, whole.slice(low, high - low), joined)


def _recoded(old: pa.Table, code_of: dict[str, int], dropped: set[str]) -> pa.Table:
    """Return the rows of the runs that stay, with codes for run ids."""
    run = old.unify_dictionaries().column("run").combine_chunks()
    names = run.dictionary.to_pylist()
    codes = np.array([-1 if n in dropped else code_of.get(n, -1) for n in names], np.int32)
    coded = codes[run.indices.to_numpy()] if names else np.empty(0, np.int32)
    table = old.set_column(old.column_names.index("run"), "run", pa.array(coded))
    return table.filter(pa.array(coded >= 0)) if (coded < 0).any() else table


def _build_runs(
    job: Job, built: Built, members: list[str], rows: dict[str, dict[str, Any]]
) -> None:
    pieces: list[Typed] = []
    for part in job.parts.get(RUNS, ()):
        old = read_part(job.store / part.file)
        old = old.set_column(0, "run", old.column("run").cast(pa.string()))
        stays = [run in members and run not in rows for run in old.column("run").to_pylist()]
        kinds = {name: job.schemas[RUNS][name] for name in old.column_names}
        pieces.append((old.filter(pa.array(stays, pa.bool_())), kinds))
    if rows:
        pieces.append(runs_table(list(rows.values())))
    merged, kinds = concatenate(pieces)
    merged = merged.sort_by("run")
    names = merged.column("run").to_pylist()
    for bucket, runs in job.groups:
        group = set(runs)
        chosen = pa.array([name in group for name in names], pa.bool_())
        _write(job, built, RUNS, bucket, merged.filter(chosen), kinds)


def runs_table(rows: list[dict[str, Any]]) -> Typed:
    """Return rows of the runs table under its fixed columns and those that the rows add."""
    table, kinds = table_of(rows)
    wanted = {**FIXED, **{name: kind for name, kind in kinds.items() if name not in FIXED}}
    return conform(table, kinds, wanted), wanted


def _write(
    job: Job, built: Built, name: str, bucket: int, table: pa.Table, kinds: dict[str, Kind]
) -> None:
    """Write one part; columns that are only null stay in the schema alone."""
    part = Part(part_file(name, bucket, job.generation), table.num_rows, bucket)
    first = KEYS if name != RUNS else FIXED
    stored = {n: k for n, k in kinds.items() if n in first or k != "null"}
    write_part(job.store / part.file, conform(table, kinds, stored))
    built.parts.setdefault(name, []).append(part)
    built.schemas[name] = join_schemas([built.schemas.get(name, {}), kinds])
