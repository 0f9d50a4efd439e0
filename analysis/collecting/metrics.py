"""metrics.jsonl → one Arrow table per stream, and the rule for records that meet at a step."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.collecting.plainlines import looks_plain, plain_tables
from analysis.parquet.columns import (
    INT32,
    INT64,
    KEYS,
    Kind,
    conform,
    encodable,
    join_schemas,
    table_of,
)
from analysis.parquet.parts import stream_directory
from analysis.parquet.problems import MOST_PER_FILE, Problem, clip
from rundir.files import METRICS_FILE

CHUNK_BYTES = 8 << 20
"""Read at once; bounds memory at about ten times as much."""
LONGEST_LINE = 16 << 20
TAIL_BYTES = 256
"""Bytes before the offset whose checksum tells a grown file from a rewritten one."""

Record = dict[str, Any]
Typed = tuple[pa.Table, dict[str, Kind]]
_Numbers = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Reading:
    """What one pass over a metrics.jsonl found."""

    offset: int
    """First byte that was not taken; a torn last line starts here and waits."""
    tail: int = 0
    """CRC-32 of the TAIL_BYTES before it."""
    tables: dict[str, list[Typed]] = field(default_factory=dict)
    """By stream, in file order, without the ``run`` column."""
    plain: bytes = b""
    """All that was read, if it may be parsed together with what other runs have: see
    :func:`parse_together`. Then there are no tables."""
    problems: list[Problem] = field(default_factory=list)
    _bad_lines: int = 0

    def report(self, run: str, offset: int, detail: str) -> None:
        """Note a bad line; the hundredth and later ones are only counted."""
        self._bad_lines += 1
        if self._bad_lines < MOST_PER_FILE:
            self.problems.append(Problem(run, METRICS_FILE, offset, "line", detail))

    def close(self, run: str) -> None:
        """Add the row that counts what ``report`` left out."""
        rest = self._bad_lines - (MOST_PER_FILE - 1)
        if rest > 0:
            detail = f"{rest} more bad lines"
            self.problems.append(Problem(run, METRICS_FILE, None, "line", detail))


def read_metrics(run: str, path: str, offset: int) -> Reading:
    """Read the whole lines from ``offset`` to the end of the file.

    A last line without its newline is taken only if it is a whole JSON object. A file that may be
    plain is only read, not parsed.

    Raises:
        OSError: the file cannot be read.
    """
    reading = Reading(offset)
    last = b""
    for chunk, ended in _chunks(path, offset):
        start = reading.offset
        if start == offset and not ended and len(chunk) < CHUNK_BYTES and looks_plain(chunk):
            reading.plain = chunk
            reading.offset += len(chunk)
        else:
            if reading.plain:
                reading.offset = offset
                _parse(run, reading.plain, reading, ended=False)
                reading.plain = b""
            _parse(run, chunk, reading, ended)
        last = (last + chunk[: reading.offset - start][-TAIL_BYTES:])[-TAIL_BYTES:]
    is_whole = len(last) == min(TAIL_BYTES, reading.offset)
    reading.tail = zlib.crc32(last) if is_whole else tail_checksum(path, reading.offset)
    reading.close(run)
    return reading


def parse_whole(run: str, lines: bytes, offset: int) -> Reading:
    """Parse whole lines that begin at ``offset`` in the metrics of a run."""
    reading = Reading(offset)
    _parse(run, lines, reading, ended=False)
    reading.close(run)
    return reading


def parse_together(chunks: list[tuple[int, bytes]]) -> dict[str, Typed] | None:
    """Parse what looks plain of many runs at once, which halves the time of many short files.

    Args:
        chunks: code of the run, and its lines.

    Returns:
        By stream a table whose column ``run`` holds the codes; None if any line is not plain.
    """
    codes = np.array([code for code, _ in chunks], np.int32)
    counts = [np.count_nonzero(np.frombuffer(s, np.uint8) == ord("\n")) for _, s in chunks]
    tables = plain_tables(b"".join(lines for _, lines in chunks), np.repeat(codes, counts))
    return tables if tables and all(fault_of_stream(s) is None for s in tables) else None


def tail_checksum(path: str, offset: int) -> int:
    """Return the CRC-32 of the bytes before ``offset``.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        start = max(0, offset - TAIL_BYTES)
        file.seek(start)
        return zlib.crc32(file.read(offset - start))


def settle(table: pa.Table) -> pa.Table:
    """Sort by run and step and leave one row at each; ``run`` holds codes.

    Records of a lower attempt yield to the highest. Records of one attempt at one step are laid
    over each other in file order: of each metric the last value that is not null stays. Nothing
    is moved when the rows are in order already, as in an undisturbed run.
    """
    code, step, attempt = (table.column(n).to_numpy() for n in ("run", "step", "attempt"))
    same = code[1:] == code[:-1]
    if np.all((code[1:] > code[:-1]) | (same & (step[1:] > step[:-1]))):
        return table
    order = np.lexsort((step, code))
    starts = _starts(code[order], step[order])
    sizes = np.diff(np.append(starts, len(order)))
    highest = np.maximum.reduceat(attempt[order], starts)
    order = order[attempt[order] == np.repeat(highest, sizes)]
    starts = _starts(code[order], step[order])
    table = table.take(pa.array(order))
    return table if len(starts) == len(order) else _overlay(table, starts)


def _starts(code: _Numbers, step: _Numbers) -> _Numbers:
    changes = (code[1:] != code[:-1]) | (step[1:] != step[:-1])
    return np.flatnonzero(np.concatenate(([True], changes)))


def _overlay(table: pa.Table, starts: _Numbers) -> pa.Table:
    rows = np.arange(table.num_rows)
    arrays = []
    for array in table.columns:
        last = np.maximum.reduceat(np.where(array.is_valid().to_numpy(), rows, -1), starts)
        arrays.append(array.take(pa.array(last, mask=last < 0)))
    return pa.table(arrays, names=table.column_names)


def _chunks(path: str, offset: int) -> Iterator[tuple[bytes, bool]]:
    """Yield runs of whole lines, then what is left at the end of the file with True."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb", buffering=0) as file:
        file.seek(offset)
        # Asked for 8 MB, Python sets them aside even for a file of a few kilobytes.
        most = min(CHUNK_BYTES, max(4096, os.fstat(handle).st_size - offset))
        rest = b""
        while block := file.read(most):
            cut = block.rfind(b"\n") + 1
            if cut:
                yield rest + block[:cut], False
                rest = block[cut:]
            else:
                rest += block
            if len(rest) > LONGEST_LINE:
                yield rest, False
                rest = b""
        if rest:
            yield rest, True


def _parse(run: str, chunk: bytes, reading: Reading, ended: bool) -> None:
    """Parse a chunk the quickest way that it allows, and move the offset past what was taken."""
    tables = plain_tables(chunk) if looks_plain(chunk) else None
    if tables is None or any(fault_of_stream(stream) is not None for stream in tables):
        records = _fast(chunk)
        if records is None:
            records = _slow(run, chunk, reading, ended)
        else:
            reading.offset += len(chunk)
        tables = {stream: table_of_records(rows) for stream, rows in records.items()}
    else:
        reading.offset += len(chunk)
    for stream, table in tables.items():
        reading.tables.setdefault(stream, []).append(table)


def _fast(chunk: bytes) -> dict[str, list[Record]] | None:
    """Parse a chunk of nothing but good lines; None if it is not that."""
    if not chunk.endswith(b"\n"):
        return None
    records: dict[str, list[Record]] = {}
    try:
        for line in chunk[:-1].decode().split("\n"):
            record = json.loads(line)
            records.setdefault(record.pop("stream"), []).append(record)
        for rows in records.values():
            _check_alike(rows)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return records if all(fault_of_stream(stream) is None for stream in records) else None


def _check_alike(rows: list[Record]) -> None:
    steps, attempts = [row["step"] for row in rows], [row["attempt"] for row in rows]
    plain = set(map(type, steps)) == {int} == set(map(type, attempts))
    if not plain or {type(row["t"]) for row in rows} != {float} or any("run" in r for r in rows):
        raise ValueError
    in_range = all(v in INT64 for v in (min(steps), max(steps)))
    if not in_range or not all(v in INT32 for v in (min(attempts), max(attempts))):
        raise ValueError


def _slow(run: str, chunk: bytes, reading: Reading, ended: bool) -> dict[str, list[Record]]:
    """Parse line by line; bad lines become problems, a torn last one stays unread."""
    records: dict[str, list[Record]] = {}
    for line in _lines(chunk):
        record = _record(line)
        torn = ended and not line.endswith(b"\n")
        if torn and isinstance(record, str):
            break
        if isinstance(record, str):
            reading.report(run, reading.offset, f"{record}: {clip(line.decode(errors='replace'))}")
        elif record:
            records.setdefault(record.pop("stream"), []).append(record)
        reading.offset += len(line)
    return records


def _lines(chunk: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(chunk):
        end = chunk.find(b"\n", start) + 1 or len(chunk)
        yield chunk[start:end]
        start = end


def _record(line: bytes) -> Record | str:
    """Return the record, empty for a blank line, or what is wrong with it."""
    if not line.strip():
        return {}
    if not line.endswith(b"\n") and len(line) > LONGEST_LINE:
        return f"longer than {LONGEST_LINE} bytes"
    try:
        record = json.loads(line.decode())
    except RecursionError:
        return "nested too deeply"
    except ValueError:
        return "not JSON"
    if not isinstance(record, dict):
        return "not an object"
    return fault_of_stream(record.get("stream")) or _with_keys(record)


def _with_keys(record: Record) -> Record | str:
    for name, legal in (("step", INT64), ("attempt", INT32)):
        value = record.setdefault(name, 1 if name == "attempt" else None)
        if isinstance(value, float) and value.is_integer():
            value = record[name] = int(value)
        if type(value) is not int or value not in legal:
            return f"{name} is no whole number"
    t = record.setdefault("t", None)
    if t is not None and type(t) not in {int, float}:
        return "t is no number"
    record["t"] = None if t is None else float(t)
    if "run" in record:
        record["metric.run"] = record.pop("run")
    return record


def fault_of_stream(stream: object) -> str | None:
    """Return what keeps this from being a stream's name, or None."""
    if not isinstance(stream, str) or not stream or encodable(stream) != stream:
        return "stream is no name"
    return "stream's name is too long" if len(stream_directory(stream)) > 200 else None


def table_of_records(rows: list[Record]) -> Typed:
    """Return the records of one stream as a table with the key columns first."""
    table, kinds = table_of(rows)
    keys = {name: kind for name, kind in KEYS.items() if name != "run"}
    metrics = {name: kind for name, kind in kinds.items() if name not in keys}
    return conform(table, kinds, keys | metrics), keys | metrics


def concatenate(tables: list[Typed]) -> Typed:
    """Return the tables one below the other under the join of their schemas."""
    kinds = join_schemas(schema for _, schema in tables)
    return pa.concat_tables([conform(t, have, kinds) for t, have in tables]), kinds
