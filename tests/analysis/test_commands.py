"""The command line: golden texts, streams and exit codes."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.__main__ import main
from analysis.collecting.collector import collect
from analysis.commands import ago
from rundir import Diverged

TABLE = """\
optimizer     lr  state      step  val loss    best  tokens/s  time  reason
────────────────────────────────────────────────────────────────────────────────────────────
muon       0.001  completed    10    1.5100  1.5100     1,006   0 s
muon        0.01  completed    10    1.6000  1.6000     1,006   0 s
adamw       0.01  completed    10    1.9000  1.9000     1,006   0 s
adamw      0.001  completed    10    1.9900  1.9900     1,006   0 s
muon         0.1  planned       -         -       -         -     -
muon           1  failed     3/10    3.7000  3.7000     1,002   0 s  RuntimeError: no memory
adamw          1  diverged     10       nan       -     1,006   0 s  nan
"""


@pytest.fixture
def store(sweep_place: Path) -> Path:
    collect()
    return sweep_place / "store"


def cells(text: str) -> list[list[str]]:
    """Return the cells of a printed table without its rule and widths."""
    lines = [line for line in text.splitlines() if "─" not in line]
    return [re.split(r"  +", line) for line in lines]


def test_the_table_has_the_best_run_first_and_failures_with_reasons(
    store: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("analysis.parquet.manifest.age_s", lambda _: 75.0)
    assert main(["table", "quickstart"]) == 0
    out, err = capsys.readouterr()
    assert out == TABLE
    assert err == "store: collected 1 minute ago; refresh with: python -m analysis collect\n"


@pytest.mark.parametrize(
    ("width", "by", "heads"),
    [
        (100, "final.val.loss", ["step", "val loss", "best", "tokens/s", "time", "reason"]),
        (84, "final.val.loss", ["step", "val loss", "best", "tokens/s", "reason"]),
        (60, "final.val.loss", ["val loss", "reason"]),
        (60, "best.val.loss", ["best", "reason"]),
    ],
)
def test_a_narrow_terminal_cuts_no_number(
    store: Path, capsys, monkeypatch, width: int, by: str, heads: list[str]
) -> None:
    for name, value in (("COLUMNS", str(width)), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["table", "quickstart", "--by", by]) == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= width
    assert re.split(r"  +", lines[0].rstrip())[3:] == heads
    assert "…" not in "".join(lines)
    assert [line.split()[:3] for line in lines[2:4]] == [
        ["muon", "0.001", "completed"],
        ["muon", "0.01", "completed"],
    ]


def test_a_table_fits_into_a_page(run_maker, capsys) -> None:
    run_maker("x", optimizer="o" * 90, error=RuntimeError("word " * 60))
    run_maker("y")
    collect()
    assert main(["table"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("optimizer")
    assert all(line == line.rstrip() != "" for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "just now"),
        (0.9, "just now"),
        (1.0, "1 second ago"),
        (59, "59 seconds ago"),
        (60, "1 minute ago"),
        (7300, "2 hours ago"),
        (86400, "1 day ago"),
    ],
)
def test_an_age_agrees_with_its_number(seconds: float, text: str) -> None:
    assert ago(seconds) == text


def test_json_is_strict_and_tells_nan_from_null(store: Path, capsys) -> None:
    assert main(["table", "--json"]) == 0

    def refuse(token: str) -> None:
        raise AssertionError(token)

    rows = {r["name"]: r for r in json.loads(capsys.readouterr().out, parse_constant=refuse)}
    assert rows["a-1"]["final.val.loss"] == "NaN"
    assert rows["m-0.1"]["final.val.loss"] is None


def test_csv_has_a_row_a_run(store: Path, capsys) -> None:
    assert main(["table", "--csv", "--all"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 7
    assert rows[0]["config.optimizer.optimizer_params.lr"] == "0.001"


@pytest.mark.parametrize(
    ("conditions", "names"),
    [
        (["lr>=0.01", "state=completed"], ["m-0.01", "a-0.01"]),
        (["optimizer = muon", "lr<0.01"], ["m-0.001"]),
        (["diverged=true"], ["a-1"]),
        (["state!=completed", "final.val.loss>0"], ["m-1"]),
    ],
)
def test_where_keeps_what_holds(
    store: Path, capsys, conditions: list[str], names: list[str]
) -> None:
    flags = [part for condition in conditions for part in ("--where", condition)]
    assert main(["table", "--json", *flags]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == names


def test_by_sorts_by_any_column(store: Path, capsys) -> None:
    assert main(["table", "--json", "--by", "name"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert names == sorted(names)


def test_collect_says_what_it_did_on_stderr(sweep_place: Path, capsys) -> None:
    (sweep_place / "multirun/quickstart/nano/muon/m-0.01/run.json").write_text("{")
    assert main(["collect"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    lines = re.sub(r"\d+\.\d s", "0.0 s", err).strip().splitlines()
    assert lines[-2] == "store: 6 new, 0 changed, 0 unchanged, 1 not started, 1 problem in 0.0 s"
    assert lines[-1].startswith("  multirun/quickstart/nano/muon/m-0.01/run.json: not JSON")


def test_diff_prints_both_sides(store: Path, capsys) -> None:
    assert main(["diff", "a-0.001", "a-0.01"]) == 0
    assert cells(capsys.readouterr().out) == [
        ["a", "multirun/quickstart/nano/adamw/a-0.001"],
        ["b", "multirun/quickstart/nano/adamw/a-0.01"],
        ["key", "a", "b"],
        ["optimizer.optimizer_params.lr", "0.001", "0.01"],
    ]
    assert main(["diff", "--json", "a-0.001", "a-0.01"]) == 0
    differences = json.loads(capsys.readouterr().out)["differences"]
    assert differences == {"optimizer.optimizer_params.lr": [0.001, 0.01]}


def test_markup_in_names_stays_text(run_maker, capsys) -> None:
    run_maker("x", error=RuntimeError("[red]oh[/red] \x1b[31m"))
    collect()
    assert main(["table"]) == 0
    out = capsys.readouterr().out
    assert "[red]oh[/red]" in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["table", "quikstart"],
            "unknown sweep quikstart; must be one of: quickstart; did you mean quickstart?",
        ),
        (
            ["table", "--where", "lr!3"],
            "where = 'lr!3'; has '!' that begins nothing, at character 3",
        ),
        (
            ["table", "--where", "lr>big"],
            "where = 'lr>big'; must compare lr with a number, at character 4",
        ),
        (
            ["table", "--where", "diverged=2"],
            "where = 'diverged=2'; must compare diverged with true or false, at character 10",
        ),
        (
            ["table", "--by", "at_5.val.acc"],
            "unknown metric acc in stream val; must be one of: loss",
        ),
        (
            ["table", "--store", "x"],
            "store = x; holds no manifest.json; run: python -m analysis collect",
        ),
        (
            ["collect", "nowhere"],
            "root = nowhere; must be a directory with run directories below it",
        ),
        (
            ["collect", "--store", "file/store"],
            "store = file/store; must be a writable directory; Not a directory",
        ),
        (
            ["collect", "empty", "--store", "new"],
            "roots = empty; must hold run directories; none was found below",
        ),
        (["plot", "--format", "gif"], "format = 'gif'; must be one of: png, pdf, svg"),
        (
            ["plot", "--out", "file/x"],
            "out = file/x; must be a writable directory; Not a directory",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    store: Path, capsys, arguments: list[str], text: str
) -> None:
    Path("file").write_text("")
    Path("empty").mkdir()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert [line for line in err.splitlines() if line.startswith("error")] == [f"error: {text}"]
    assert not Path("new").exists()


def test_nothing_to_collect_is_one_line(place: Path, capsys) -> None:
    assert main(["collect"]) == 2
    text = f"roots = none; neither outputs nor multirun exists in {place}; name a directory"
    assert capsys.readouterr().err == f"error: {text}\n"
    assert not Path("store").exists()


def test_a_reader_that_goes_away_is_no_error(store: Path) -> None:
    root = Path(__file__).parents[2]
    script = f"{sys.executable} -m analysis table --csv --all | head -c 10; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script],
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.endswith("\n0\n") or done.stdout.endswith("0\n")
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize("form", [[], ["--csv", "--all"]])
def test_a_full_disk_is_one_line_and_exit_code_1(store: Path, form: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "analysis", "table", *form],
            env={"PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[1:] == ["error: No space left on device"]


def test_the_table_shows_the_metric_that_it_is_sorted_by(store, capsys):
    assert main(["table", "--store", str(store), "--by", "final.train.loss"]) == 0
    printed = capsys.readouterr().out
    assert "train loss" in printed
    assert "val loss" not in printed


def test_by_takes_a_metric_at_a_step(store: Path, capsys) -> None:
    assert main(["table", "--json", "--by", "at_4.train.loss", "--where", "at_4.train.loss<9"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["m-0.001", "m-0.01", "a-0.01", "a-0.001"]
    assert rows[0]["at_4.train.loss"] == pytest.approx(2.5 - 0.4 + 0.01)
    assert main(["table", "--by", "at_4.train.loss"]) == 0
    assert "train loss at 4" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--where", "stat = lost"], ["--by", "stat"]])
def test_an_unknown_column_is_answered_with_the_nearest(store: Path, capsys, words) -> None:
    assert main(["table", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: unknown column stat; must be one of: attempt, ")
    assert err.endswith("; did you mean state?\n")


def test_no_match_is_said(store: Path, capsys) -> None:
    assert main(["table", "--where", "lr > 5", "--csv"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert "of 7 runs none matches" in err


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["table", "--limit", "-3"], "--limit: '-3'; must be a whole number of at least 0"),
        (["table", "--limit", "few"], "--limit: 'few'; must be a whole number of at least 0"),
        (["collect", "--workers", "0"], "--workers: '0'; must be a whole number of at least 1"),
    ],
)
def test_a_count_that_makes_no_sense_is_refused(capsys, arguments: list[str], fault: str) -> None:
    assert main(arguments) == 2
    help_of = f"see python -m analysis {arguments[0]} --help"
    assert capsys.readouterr().err == f"error: argument {fault}; {help_of}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["tabel"],
            (
                "unknown command tabel; must be one of: collect, diff, plot, report, table; "
                "did you mean table?"
            ),
        ),
        (
            ["diff", "a", "b", "--jsn"],
            (
                "unknown option --jsn in python -m analysis diff; must be one of: --help, --json, "
                "--store, -h; did you mean --json?"
            ),
        ),
        (["plot", "a", "b"], "too many words: b; see python -m analysis plot --help"),
        ([], "the following arguments are required: COMMAND; see python -m analysis --help"),
    ],
)
def test_a_command_line_that_does_not_parse_is_one_line(capsys, words, said) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err == f"error: {said}\n"


def test_settings_leave_room_for_the_reason(run_maker, capsys) -> None:
    more = {f"setting_number_{i}": i for i in range(5)}
    asked = [f"{name}={value}" for name, value in more.items()]
    run_maker("a", config=more, overrides=asked, error=Diverged("loss = nan"))
    run_maker("b")
    collect()
    capsys.readouterr()
    assert main(["table"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "time  reason" in lines[0]
    assert sum("loss = nan" in line for line in lines) == 1
