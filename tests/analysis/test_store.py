"""The files of a store: how they are encoded, and that no half one stays."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from analysis import runs
from analysis.collecting.collector import collect


def test_leftovers_of_a_killed_collector_are_removed(run_maker) -> None:
    run_maker("a")
    collect()
    names = (
        "runs/part-0-2.parquet",
        "history/train/.part-0-2.parquet.x1y2",
        "sources-2.json",
        ".manifest.json.x1y2",
        "problems-2.parquet",
        ".problems-2.parquet.x1y2",
    )
    left = [Path("store", name) for name in names]
    for path in left:
        path.write_text("half")
    assert len(runs()) == 1
    collect()
    assert not any(path.exists() for path in left)


def test_parts_are_compressed_and_encoded_as_designed(run_maker) -> None:
    run_maker("a", steps=50)
    collect()
    meta = pq.read_metadata(next(Path("store/history/train").iterdir())).row_group(0)
    columns = {c.path_in_schema: c for c in (meta.column(i) for i in range(meta.num_columns))}
    assert {c.compression for c in columns.values()} == {"ZSTD"}
    assert "BYTE_STREAM_SPLIT" in columns["loss"].encodings
    assert "DELTA_BINARY_PACKED" in columns["step"].encodings
    assert "RLE_DICTIONARY" in columns["run"].encodings
