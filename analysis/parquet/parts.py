"""The Parquet files of a store: written whole or not at all, read under one schema a table.

A store has a table ``runs``, a table ``history/<stream>`` for each stream of metrics, both cut into
parts, and a small table of problems in one file. A file belongs to the store while the manifest
names it; the next collect deletes the others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.parquet import manifest as manifests
from analysis.parquet.columns import Kind, conform
from analysis.parquet.manifest import Part, StoreError
from rundir.files import replacing

ROWS_PER_GROUP = 1 << 17

_TRIES = 5


def history_table(stream: str) -> str:
    """Return the name of a stream's table in the manifest."""
    return f"history/{stream}"


def stream_directory(stream: str) -> str:
    """Return the stream's directory below history/: percent-encoded, never hidden or ``..``."""
    name = quote(stream, safe="")
    return "%2E" + name[1:] if name.startswith(".") else name


def part_file(table: str, bucket: int, generation: int) -> str:
    """Return the path, relative to the store, of a part that no collect has used before."""
    kind, _, stream = table.partition("/")
    directory = f"{kind}/{stream_directory(stream)}" if stream else kind
    return f"{directory}/part-{bucket if bucket >= 0 else 'planned'}-{generation}.parquet"


def problems_file(generation: int) -> str:
    """Return the path, relative to the store, of the problems that a collect leaves."""
    return f"problems-{generation}.parquet"


def write_part(path: Path, table: pa.Table) -> None:
    """Write one part, or replace it, durably. Raises OSError.

    Text is dictionary-encoded; floats are split by byte, steps stored as differences, and all of
    it is compressed with zstd.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text, encodings = [], {}
    for field in table.schema:
        if pa.types.is_string(field.type) or pa.types.is_dictionary(field.type):
            text.append(field.name)
        elif pa.types.is_floating(field.type):
            encodings[field.name] = "BYTE_STREAM_SPLIT"
        elif pa.types.is_integer(field.type):
            encodings[field.name] = "DELTA_BINARY_PACKED"
    with replacing(path) as file:
        pq.write_table(
            table,
            file,
            compression="zstd",
            use_dictionary=text,
            column_encoding=encodings or None,
            row_group_size=ROWS_PER_GROUP,
            # Without Arrow's own schema every reader sees text as text, not some as categories.
            store_schema=False,
        )


def read_part(path: Path, columns: Collection[str] | None = None) -> pa.Table:
    """Read one part, or those of the columns that it has; ``run`` comes as a dictionary."""
    with pq.ParquetFile(path, read_dictionary=["run"]) as file:
        names = file.schema_arrow.names
        return file.read(None if columns is None else [n for n in names if n in columns])


def read_table(
    store: Path,
    table: str,
    columns: Collection[str] | None = None,
    buckets: Collection[int] | None = None,
) -> pa.Table:
    """Read the live parts of a table under its whole schema; a column that a part lacks is null.

    Args:
        store: the store's directory.
        table: ``runs`` or ``history/<stream>``.
        columns: those to read; all by default. Unknown ones are an error of the caller.
        buckets: read only the parts of these.

    Raises:
        StoreError: there is no store.
    """
    for _ in range(_TRIES):
        manifest = manifests.load(store)
        schema = manifest.schemas.get(table, {})
        wanted = {n: schema[n] for n in (schema if columns is None else columns)}
        parts = [p for p in manifest.parts.get(table, []) if buckets is None or p.bucket in buckets]
        try:
            return _concatenated(store, parts, wanted)
        except FileNotFoundError:
            # A collector replaced the manifest and removed the part in between.
            continue
    raise _incomplete(store)


def read_problems(store: Path) -> pa.Table:
    """Read what the collector skipped. Raises StoreError when there is no store."""
    for _ in range(_TRIES):
        try:
            with pq.ParquetFile(store / manifests.load(store).problems_file) as file:
                return file.read()
        except FileNotFoundError:
            # As in read_table.
            continue
    raise _incomplete(store)


def _incomplete(store: Path) -> StoreError:
    return StoreError(f"store = {store}; parts are missing; delete it and collect again")


def _concatenated(store: Path, parts: list[Part], wanted: Mapping[str, Kind]) -> pa.Table:
    def one(bucket: int) -> pa.Table:
        mine = [store / part.file for part in parts if part.bucket == bucket]
        return _grouped([conform(read_part(p, wanted.keys()), wanted, wanted) for p in mine])

    if not parts:
        return conform(pa.table({}), wanted, wanted)
    buckets = dict.fromkeys(part.bucket for part in parts)
    with ThreadPoolExecutor(min(4, len(buckets))) as pool:
        return pa.concat_tables(pool.map(one, buckets)).unify_dictionaries()


def _grouped(parts: list[pa.Table]) -> pa.Table:
    """Return the parts of one bucket as one table with the rows of each run together."""
    if len(parts) == 1 or "run" not in parts[0].column_names:
        return pa.concat_tables(parts)
    table = pa.concat_tables(parts).unify_dictionaries().combine_chunks()
    # Stable: from part to part the steps of a run ascend.
    order = np.argsort(table.column("run").combine_chunks().indices.to_numpy(), kind="stable")
    return table.take(pa.array(order))
