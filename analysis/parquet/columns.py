"""Types of the store's columns, and how two types that meet in one column are joined.

    bool  int64  double  string   as in Arrow
    json    lists, mappings and integers beyond 64 bits, as JSON text
    mixed   types that do not join (text and number): every value as JSON text, plus a problem row;
            see :func:`settled_types`
    null    only nulls seen so far: written to no part, shown as an empty text column

int64 and double join to double, null joins to anything, all else to mixed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

Kind = str

_ARROW = {
    "bool": pa.bool_(),
    "int64": pa.int64(),
    "double": pa.float64(),
    "string": pa.string(),
    "json": pa.string(),
    "mixed": pa.string(),
    "null": pa.string(),
}
_PYTHON: dict[type, Kind] = {
    type(None): "null",
    bool: "bool",
    int: "int64",
    float: "double",
    str: "string",
}
KEYS: dict[str, Kind] = {"run": "string", "step": "int64", "t": "double", "attempt": "int64"}
"""First columns of every history table."""

INT64 = range(-(2**63), 2**63)
"""Integers that Arrow holds; larger ones are kept as text."""
INT32 = range(-(2**31), 2**31)

_ENCODER = json.JSONEncoder(default=str)
"""Kept: ``json.dumps`` builds another for every call with a default."""


def join(first: Kind, second: Kind) -> Kind:
    """Return the kind that holds values of both kinds without loss of meaning."""
    if second in {first, "null"}:
        return first
    if first == "null":
        return second
    return "double" if {first, second} == {"int64", "double"} else "mixed"


def join_schemas(schemas: Iterable[Mapping[str, Kind]]) -> dict[str, Kind]:
    """Return one schema with every column of all schemas, in order of first appearance."""
    joined: dict[str, Kind] = {}
    for schema in schemas:
        for name, kind in schema.items():
            joined[name] = join(joined.get(name, "null"), kind)
    return joined


def column(values: Sequence[Any]) -> tuple[pa.Array, Kind]:
    """Build an array from Python values; its kind is the join of theirs.

    Costs one pass over the values' types, and one call into Arrow when they are alike.
    """
    types = set(map(type, values))
    kind: Kind = "null"
    for name in sorted(_PYTHON.get(t, "json") for t in types):
        kind = join(kind, name)
    if int in types and not _in_range(values, types):
        kind = "json" if kind == "int64" else "mixed"
    if kind in {"json", "mixed"}:
        values = [None if v is None else json_text(v) for v in values]
    elif kind == "double" and int in types:  # Arrow itself takes none that it would have to round
        values = [None if v is None else float(v) for v in values]
    try:
        return pa.array(values, _ARROW[kind]), kind
    except UnicodeEncodeError:
        return pa.array([v and encodable(v) for v in values], _ARROW[kind]), kind


def _in_range(values: Sequence[Any], types: set[type]) -> bool:
    """Say whether Arrow holds all the integers among the values."""
    if types == {int}:
        return min(values) in INT64 and max(values) in INT64
    return all(v in INT64 for v in values if type(v) is int)


def table_of(rows: Sequence[Mapping[str, Any]]) -> tuple[pa.Table, dict[str, Kind]]:
    """Build a table with the union of the rows' keys; an absent key is null."""
    names: dict[str, Any] = {}
    for row in rows:
        names.update(row)
    built = {encodable(name): column([row.get(name) for row in rows]) for name in names}
    table = pa.table({name: array for name, (array, _) in built.items()})
    return table, {name: kind for name, (_, kind) in built.items()}


def conform(table: pa.Table, have: Mapping[str, Kind], want: Mapping[str, Kind]) -> pa.Table:
    """Return the table with exactly the columns and kinds of ``want``; absent columns are null."""
    names = table.column_names
    if names == list(want) and all(have.get(n, k) == k for n, k in want.items()):
        return table
    # Both lists are made anew at every look, which for a hundred columns costs more than the rest.
    columns = dict(zip(names, table.columns, strict=True))
    arrays = []
    for name, kind in want.items():
        if name in columns:
            arrays.append(_convert(columns[name], have.get(name, kind), kind))
        else:
            arrays.append(pa.nulls(table.num_rows, _ARROW[kind]))
    return pa.table(arrays, names=list(want))


def settled_types(table: pa.Table, kinds: Mapping[str, Kind]) -> pa.Table:
    """Give the mixed columns of a selection of rows the type that all values in it have, if one.

    One run's word among the numbers of a thousand others makes the column JSON text in the store;
    whoever reads without that run gets the numbers.
    """
    for place, name in enumerate(table.column_names):
        if kinds.get(name) != "mixed":
            continue
        texts = table.column(name).to_pylist()
        try:
            values, kind = column([None if t is None else json.loads(t) for t in texts])
        except ValueError:
            # Not JSON: a collector has just given the column another type.
            continue
        if kind not in {"json", "mixed", "null"}:
            table = table.set_column(place, name, values)
    return table


def json_text(value: object) -> str:
    """Return compact JSON; NaN and the infinities are written as Python's json does."""
    return _ENCODER.encode(value)


def encodable(text: str) -> str:
    """Return the text with lone surrogates, which Arrow cannot hold, written as escapes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def _convert(array: pa.ChunkedArray, have: Kind, want: Kind) -> pa.ChunkedArray:
    if have == want or (have == "json" and want == "mixed"):
        return array
    if have == "null":
        return pa.chunked_array([pa.nulls(len(array), _ARROW[want])])
    if want == "mixed":
        texts = [None if v is None else json_text(v) for v in array.to_pylist()]
        return pa.chunked_array([pa.array(texts, pa.string())])
    return pc.cast(array, _ARROW[want], safe=False)
