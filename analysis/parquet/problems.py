"""What the collector could not take, where and why: the rows of the file of problems."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

MOST_PER_FILE = 100
"""A file with more bad lines than this gets one closing row with their number."""

SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("kind", pa.string()),
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class Problem:
    """One row of the file of problems."""

    run: str | None
    """Run id, or None for what concerns the whole store."""
    file: str | None
    """Source relative to the run directory, or an absolute path."""
    offset: int | None
    """Byte at which a bad line starts, in metrics.jsonl."""
    kind: str
    """unreadable, config, status, line, type or plan."""
    detail: str


def clip(text: str, most: int = 200) -> str:
    """Return the text on one line of at most ``most`` characters, safe to print."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= most else line[: most - 3] + "..."
