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
from analysis.collecting.collector import collect
from analysis.collecting.metrics import Reading, _fast, _slow, parse_together, table_of_records
from analysis.collecting.plainlines import looks_plain, plain_tables
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
        # A null says nothing, so that it leaves what an earlier line said.
        said = {k: v for k, v in record.items() if v is not None}
        values = {k: v for k, v in said.items() if k not in {"stream", "step"}}
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


# Of few kinds a record, so that most chunks are plain.
VALUES = st.one_of(
    st.just(st.floats(allow_nan=True, allow_infinity=True)),
    st.just(st.integers(-5, 5)),
    st.just(st.integers(2**53 - 2, 2**53 + 2)),
    st.just(st.sampled_from([2**63 - 1, 2**63, -(2**63), 10**25])),
    st.just(st.booleans()),
    st.just(st.sampled_from(["word", "2026-01-01", "2026-01-01 00:00:00", "é", "", "a\\b", "}"])),
    st.just(st.one_of(st.floats(-4, 4), st.integers(-4, 4))),
    st.just(st.one_of(st.none(), st.floats())),
    st.just(st.lists(st.integers(), max_size=1)),
)


@st.composite
def uniform_records(draw: st.DrawFn) -> list[dict[str, Any]]:
    metrics = draw(st.dictionaries(st.sampled_from(["loss", "lr", "n", "a b", "run"]), VALUES))
    step = draw(st.sampled_from([st.integers(0, 9), st.integers(0, 9), st.floats(0, 9)]))
    keys = {
        "stream": st.sampled_from(draw(st.sampled_from([["train"], ["train", "val"], [""]]))),
        "step": step,
        "t": draw(st.sampled_from([st.floats(0, 2e9), st.floats(0, 2e9), st.integers(0, 9)])),
        "attempt": draw(st.sampled_from([st.integers(1, 3), st.integers(1, 2**33)])),
    }
    return draw(st.lists(st.fixed_dictionaries(keys, optional=metrics), min_size=1, max_size=8))


def by_python(lines: bytes) -> dict[str, Any]:
    records = _fast(lines)
    if records is None:
        records = _slow("run", lines, Reading(0), ended=False)
    return {stream: table_of_records(rows) for stream, rows in records.items()}


def readable(tables: dict[str, Any]) -> dict[str, Any]:
    """Kinds and values of every column, NaN equal to itself and -0.0 not to 0.0."""
    return {
        stream: {name: (kinds[name], repr(table.column(name).to_pylist())) for name in kinds}
        for stream, (table, kinds) in tables.items()
    }


@settings(max_examples=300, deadline=None)
@given(records=uniform_records())
def test_arrow_says_what_python_says_or_leaves_it_to_python(records: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    tables = plain_tables(lines) if looks_plain(lines) else None
    if tables is not None and "" not in tables:
        assert readable(tables) == readable(by_python(lines))


def test_what_the_trainer_logs_takes_the_quick_way() -> None:
    record = {"stream": "train", "step": 1, "t": 1.5, "attempt": 1, "loss": math.nan, "tokens": 9}
    record |= {"lr": 1.0}  # a double that is whole, and in this stream alone
    other = {"stream": "val", "step": 1, "t": 2.5, "attempt": 1, "loss": 0.5}
    lines = (json.dumps(record) + "\n" + json.dumps(other) + "\n").encode()
    tables = plain_tables(lines)
    assert tables is not None
    assert readable(tables) == readable(by_python(lines))


def test_a_whole_number_that_a_double_rounds_stands_beside_doubles() -> None:
    keys = '"stream":"train","t":1.5,"attempt":1'
    lines = f'{{{keys},"step":1,"n":{2**53 + 1}}}\n{{{keys},"step":2,"n":0.5}}\n'.encode()
    table, kinds = by_python(lines)["train"]
    assert (kinds["n"], table.column("n").to_pylist()) == ("double", [2.0**53, 0.5])


TRICKS = [
    b'{"stream":"a","step":1,"t":1.0,"attempt":1}{"stream":"a","step":2,"t":1.0,"attempt":1}\n',
    b'{"stream":"a","step":1,"t":1.0,"attempt":1,"x":{}\n,"y":1}\n',
    b'{"stream":"a","step":1,"step":2,"t":1.0,"attempt":1}\n',
    b'{"stream":"a","step":1,"t":1.0,"attempt":1,"x":01}\n',
    b'{"stream":"a","step":1,"t":1.0,"attempt":1,"x":1e999}\n',
    b'{"stream":"a","step":1,"t":1.0,"attempt":1,}\n',
    b'{"stream":"a","step":1,"t":1.0}\n',
    b"{}\n",
    b"[]\n",
    b"\n",
    b"",
]


def test_a_line_that_is_no_record_never_takes_the_quick_way() -> None:
    good = b'{"stream":"a","step":1,"t":1.0,"attempt":1,"x":0.5}\n'
    assert plain_tables(good) is not None
    for trick in TRICKS:
        for lines in (trick, good + trick, trick + good):
            if lines != good:
                assert not looks_plain(lines) or plain_tables(lines) is None, lines


def test_runs_parsed_together_are_those_parsed_alone() -> None:
    line = '{"stream":"train","step":%d,"t":1.5,"attempt":1,"loss":%s}\n'
    chunks = [(3, (line % (1, "0.5") + line % (2, "NaN")).encode()), (7, (line % (1, 3)).encode())]
    tables = parse_together(chunks)
    assert tables is not None
    table, kinds = tables["train"]
    assert table.column("run").to_pylist() == [3, 3, 7]
    assert repr(table.column("loss").to_pylist()) == "[0.5, nan, 3.0]"
    assert list(kinds)[:4] == ["run", "step", "t", "attempt"]
    assert parse_together([*chunks, (8, b'{"stream":"train"}\n')]) is None


DRIFTING = st.one_of(
    st.integers(-3, 3),
    FLOATS,
    st.booleans(),
    st.none(),
    st.sampled_from(["word", "1", "null", "2026-01-01"]),
    st.lists(st.integers(0, 3), max_size=2),
)
DRIFTING_RECORDS = st.fixed_dictionaries(
    {"stream": st.just("train"), "step": st.integers(0, 4), "attempt": st.integers(1, 2)},
    optional={"x": DRIFTING, "y": st.one_of(st.integers(-3, 3), FLOATS), "t": st.floats(0, 9)},
)


def same_value(got: Any, want: Any) -> bool:
    """A value of a column of mixed types comes back as JSON text."""
    if isinstance(got, str) and got != want:
        got = json.loads(got)
    number = isinstance(want, (int, float)) and not isinstance(want, bool)
    return repr(float(got)) == repr(float(want)) if number else repr(got) == repr(want)


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.tuples(st.sampled_from("ab"), DRIFTING_RECORDS), max_size=12),
    twice=st.lists(st.integers(0, 11), max_size=3),
    cut=st.integers(0, 12),
    random=st.randoms(use_true_random=False),
)
def test_reordered_repeated_and_drifting_records_of_several_runs(
    lines: list[tuple[str, Any]], twice: list[int], cut: int, random: Any
) -> None:
    lines = [*lines, *(lines[i] for i in twice if i < len(lines))]
    random.shuffle(lines)
    with tempfile.TemporaryDirectory() as place:
        store = Path(place, "store")
        for written in (lines[:cut], lines):
            for name in "ab":
                run = Path(place, "outputs", name)
                run.mkdir(parents=True, exist_ok=True)
                (run / "run.json").write_text("{}")
                mine = [json.dumps(record) + "\n" for owner, record in written if owner == name]
                (run / "metrics.jsonl").write_text("".join(mine))
            collect([Path(place, "outputs")], store)
        try:
            table = history("train", store=store)
        except UserError:
            assert not lines
            return
        got = {(str(r["run"])[-1], r["step"]): r for r in table.astype(object).to_dict("records")}
    want = {
        (name, step): row
        for name in "ab"
        for step, row in expected([r for owner, r in lines if owner == name])
        .get("train", {})
        .items()
    }
    assert got.keys() == want.keys()
    for key, row in want.items():
        for metric in ("x", "y", "t", "attempt"):
            value = row.get(metric)
            if value is None:
                assert metric not in got[key] or repr(got[key][metric]) in {"None", "<NA>"}
            else:
                assert same_value(got[key][metric], value), (key, metric)
