"""Property: of torn, interleaved, repeated metrics nothing whole is lost, nothing invented."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import history
from analysis.collector import collect
from rundir import UserError

FLOATS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.sampled_from([math.nan, math.inf, 0.0])
)
RECORDS = st.fixed_dictionaries(
    {
        "stream": st.sampled_from(["train", "val"]),
        "step": st.integers(0, 6),
        "t": st.floats(0, 2e9),
        "attempt": st.integers(1, 3),
    },
    optional={"loss": FLOATS, "grad norm/é": FLOATS, "run": FLOATS, "step.": FLOATS},
)
GARBAGE = st.one_of(
    st.sampled_from(
        ["", "{", '{"stream": "train", "step": 1', "null", "[]", "\x00", "}{", '"step"']
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=20),
)
LINES = st.lists(st.one_of(RECORDS, RECORDS, GARBAGE), max_size=30)


def text_of(line: Any) -> str:
    return line if isinstance(line, str) else json.dumps(line)


def expected(lines: list[Any]) -> dict[str, dict[int, dict[str, float]]]:
    """The plain reference: highest attempt, then the last value of each metric."""
    kept: dict[str, dict[int, dict[str, float]]] = {}
    records = [line for line in lines if isinstance(line, dict)]
    for record in sorted(records, key=lambda r: r["attempt"]):
        row = kept.setdefault(record["stream"], {}).get(record["step"], {})
        if row.get("attempt") != record["attempt"]:
            row = {}
        values = {k: v for k, v in record.items() if k not in {"stream", "step"}}
        if "run" in values:
            values["metric.run"] = values.pop("run")
        kept[record["stream"]][record["step"]] = {**row, **values}
    return kept


def stored(store: Path, stream: str) -> dict[int, dict[str, float]]:
    try:
        table = history(stream, store=store)
    except UserError:
        return {}
    rows = table.drop(columns="run").astype(object).to_dict("records")
    assert table["step"].is_monotonic_increasing
    return {
        row.pop("step"): {k: v for k, v in row.items() if v is not None and repr(v) != "<NA>"}
        for row in rows
    }


def same(first: dict[int, dict[str, float]], second: dict[int, dict[str, float]]) -> bool:
    # repr tells -0.0 from 0.0 and takes NaN for NaN.
    def plain(rows: dict[int, dict[str, float]]) -> dict[int, dict[str, str]]:
        return {
            s: {k: repr(float(v)) for k, v in sorted(r.items())} for s, r in sorted(rows.items())
        }

    return plain(first) == plain(second)


@settings(max_examples=60, deadline=None)
@given(lines=LINES, cuts=st.lists(st.integers(0, 4000), max_size=3), newline=st.booleans())
def test_whole_lines_survive_however_the_file_grew(
    lines: list[Any], cuts: list[int], newline: bool
) -> None:
    content = "".join(text_of(line) + "\n" for line in lines).encode()
    content = content if newline else content[:-1]
    with tempfile.TemporaryDirectory() as place:
        run, store = Path(place, "outputs/run"), Path(place, "store")
        run.mkdir(parents=True)
        (run / "run.json").write_text("{}")
        for cut in [*sorted(cuts), len(content)]:
            (run / "metrics.jsonl").write_bytes(content[:cut])
            collect([run.parent], store)
        for stream in ("train", "val"):
            assert same(stored(store, stream), expected(lines).get(stream, {}))


@settings(max_examples=40, deadline=None)
@given(lines=LINES, cut=st.integers(0, 4000))
def test_a_file_cut_anywhere_yields_only_records_that_were_written(
    lines: list[Any], cut: int
) -> None:
    content = "".join(text_of(line) + "\n" for line in lines).encode()[:cut]
    whole = content.decode(errors="replace").count("\n")
    # A last object that lacks only its newline is whole.
    candidates = [expected(lines[:whole]), expected(lines[: whole + 1])]
    with tempfile.TemporaryDirectory() as place:
        run, store = Path(place, "outputs/run"), Path(place, "store")
        run.mkdir(parents=True)
        (run / "run.json").write_text("{}")
        (run / "metrics.jsonl").write_bytes(content)
        collect([run.parent], store)
        got = {stream: stored(store, stream) for stream in ("train", "val")}
    assert any(all(same(got[s], want.get(s, {})) for s in got) for want in candidates)
