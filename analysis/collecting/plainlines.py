"""The quick way through metrics.jsonl: Arrow's own JSON reader, where it says what Python's would.

It takes a third of the time, and gives columns instead of rows. A chunk that holds anything on
which the two could differ (escapes, nulls, integers beyond 2^53, a type that changes, two objects
on a line) is left to the reader in :mod:`analysis.collecting.metrics`; tests hold the two against
each other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import json as arrow_json

from analysis.parquet.columns import INT32, KEYS, Kind

_KINDS: dict[pa.DataType, Kind] = {
    pa.bool_(): "bool",
    pa.int64(): "int64",
    pa.float64(): "double",
    pa.string(): "string",
}
_KEYS = {"step": pa.int64(), "t": pa.float64(), "attempt": pa.int64()}
_EXACT = float(2**53)
"""Below, a double holds every integer, so that none was rounded on its way to one."""


def looks_plain(chunk: bytes) -> bool:
    """Say whether whole lines may be plain; Arrow's reader has the last word.

    Each line begins and ends with a brace. If there are as many objects as lines, each is on one.
    """
    if not (chunk.startswith(b"{") and chunk.endswith(b"}\n") and chunk.isascii()):
        return False
    # One letter is found thirty times as fast as four, and few metrics have this one.
    if b"\\" in chunk or (b"u" in chunk and b"null" in chunk):
        return False
    # Half the time of counting the pairs of bytes that may stand between two lines.
    text = np.frombuffer(chunk, np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    is_opened = text[ends[:-1] + 1] == ord("{")
    return bool(is_opened.all() and (text[ends - 1] == ord("}")).all())


def plain_tables(
    chunk: bytes, codes: np.ndarray[Any, np.dtype[np.int32]] | None = None
) -> dict[str, tuple[pa.Table, dict[str, Kind]]] | None:
    """Return the records of whole lines by stream, without ``stream``; None if they are not plain.

    The key columns come first, in the order run, step, t, attempt.

    Args:
        chunk: lines that look plain.
        codes: the run of each line; without it there is no column ``run``.
    """
    options = arrow_json.ReadOptions(use_threads=False, block_size=len(chunk) + 1)
    try:
        table = arrow_json.read_json(pa.BufferReader(chunk), read_options=options)
    except pa.ArrowException:
        return None
    lines = chunk.count(b"\n") if codes is None else len(codes)
    if table.num_rows != lines or not _is_plain(table):
        return None
    if codes is not None:
        table = table.add_column(0, "run", pa.array(codes))
    streams = pc.unique(table.column("stream")).to_pylist()
    tables = {stream: _of_stream(table, stream, len(streams)) for stream in streams}
    return None if None in tables.values() else {s: t for s, t in tables.items() if t is not None}


def _is_plain(table: pa.Table) -> bool:
    names = table.column_names
    kinds = dict(zip(names, table.schema.types, strict=True))
    if len(kinds) != len(names) or "run" in kinds or not set(kinds.values()) <= _KINDS.keys():
        return False
    if kinds.get("stream") != pa.string() or table.column("stream").null_count:
        return False
    for name, kind in _KEYS.items():
        if kinds.get(name) != kind or table.column(name).null_count:
            return False
    low, high = (pc.min_max(table.column("attempt"))[side].as_py() for side in ("min", "max"))
    return low in INT32 and high in INT32


def _of_stream(
    table: pa.Table, stream: str, streams: int
) -> tuple[pa.Table, dict[str, Kind]] | None:
    mine = table
    if streams > 1:
        mine = table.filter(pc.equal(table.column("stream"), stream))
    keys = [name for name in ("run", *_KEYS) if name in mine.column_names]
    columns: dict[str, pa.ChunkedArray] = {name: mine.column(name) for name in keys}
    for name in mine.column_names:
        column = mine.column(name)
        if name in columns or name == "stream" or column.null_count == len(column):
            continue
        alone = _values(table.column(name)) == _values(column)
        if column.type == pa.float64() and not _is_double(column, alone=alone):
            return None
        columns[name] = column
    kinds = {name: KEYS.get(name) or _KINDS[column.type] for name, column in columns.items()}
    return pa.table(columns), kinds


def _values(column: pa.ChunkedArray) -> int:
    count: int = len(column) - column.null_count
    return count


def _is_double(column: pa.ChunkedArray, *, alone: bool) -> bool:
    """Say whether the numbers were written as such doubles, as far as can be told.

    Where a stream is not alone with a column, it may hold integers that others made doubles of.
    """
    values = column.drop_null().to_numpy()
    large = abs(values) >= _EXACT
    if large.any() and (abs(values[large]) != float("inf")).any():
        return False
    return alone or bool((values != values.round()).any())
