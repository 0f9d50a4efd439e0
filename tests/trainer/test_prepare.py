"""Preparing datasets: the same shards whatever happens on the way, and a line for every mistake."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer import prepare
from trainer.data.catalogue import PREPARED, shards_of
from trainer.data.corpus import load_shakespeare
from trainer.data.documents import documents, files_source
from trainer.data.headers import HEADER_BYTES
from trainer.data.manifest import MANIFEST_FILE, Manifest, Position
from trainer.data.preparation import Preparation
from trainer.data.tokenizers import Gpt2Tokenizer
from trainer.data.tokenizing import Tokenized, tokenized

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = ("--workers", "0", "--tokens", "2000", "--val-tokens", "500", "--shard-tokens", "600")
SPEECHES = [speech.strip() for speech in load_shakespeare()[:60_000].split("\n\n")]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPTSWEEP_DATA", raising=False)


@pytest.fixture
def parquet(tmp_path: Path) -> list[str]:
    """Two files of speeches, in row groups of 50."""
    half = len(SPEECHES) // 2
    for name, texts in (("a", SPEECHES[:half]), ("b", SPEECHES[half:])):
        table = pa.table({"id": list(range(len(texts))), "text": texts})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=50)
    return [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]


def run(*arguments: str) -> int:
    return prepare.main(list(arguments))


def tokens_in(directory: Path) -> np.ndarray[Any, Any]:
    """Return the tokens of all shards, in the order of their numbers."""
    files = sorted(directory.glob("*.bin"), key=lambda path: path.stem[-6:])
    return np.concatenate([np.fromfile(file, "<u2", offset=HEADER_BYTES) for file in files])


def contents(directory: Path) -> dict[str, bytes | str]:
    """Return the shards, and the manifest but for positions, of which there are several names."""
    found: dict[str, bytes | str] = {p.name: p.read_bytes() for p in directory.glob("*.bin")}
    manifest = Manifest.read(directory)
    assert manifest is not None
    shards = tuple(replace(shard, end=Position()) for shard in manifest.shards)
    return {**found, MANIFEST_FILE: repr(replace(manifest, shards=shards))}


def test_shards_hold_the_documents_in_order_each_behind_an_end_of_text(
    parquet: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("finewebmini", *SMALL, "--source", *parquet) == 0
    directory = Path("data/finewebmini")
    expected = Gpt2Tokenizer().encode_documents(SPEECHES)
    assert expected[0] == 50256
    assert tokens_in(directory).tolist() == expected[:2500].tolist()
    manifest = Manifest.read(directory)
    assert manifest is not None
    assert [(shard.file, shard.tokens) for shard in manifest.shards] == [
        ("val_000000.bin", 500),
        ("train_000001.bin", 600),
        ("train_000002.bin", 600),
        ("train_000003.bin", 600),
        ("train_000004.bin", 200),
    ]
    for shard in manifest.shards:
        raw = (directory / shard.file).read_bytes()
        assert raw[:8] == b"optsweep"
        assert hashlib.sha256(raw[HEADER_BYTES:]).hexdigest() == shard.sha256
    assert sum(s.documents for s in manifest.shards) == (expected[:2500] == 50256).sum()
    found = [(file, os.stat(file)) for file in parquet]
    assert manifest.source["files"] == [[f, stat.st_size, stat.st_mtime_ns] for f, stat in found]
    said = "2,000 tokens for training, 500 for validation, in 5 shards"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "txt"])
def test_every_kind_of_file_gives_the_same_tokens(kind: str, tmp_path: Path) -> None:
    texts = SPEECHES if kind != "txt" else ["\n\n".join(SPEECHES)]
    lines = "".join(json.dumps({"body": text, "n": 1}) + "\n" for text in texts)
    path = tmp_path / f"x.{kind}"
    if kind == "txt":
        path.write_text(texts[0])
    elif kind == "jsonl.zst":
        zstandard = pytest.importorskip("zstandard", reason="the extra [data] is not installed")
        path.write_bytes(zstandard.compress(lines.encode()))
    else:
        path.write_bytes(lines.encode() if kind == "jsonl" else gzip.compress(lines.encode()))
    column = () if kind == "txt" else ("--column", "body")
    assert run("fineweb1B", *SMALL, "--source", str(path), *column, "--out", "out") == 0
    expected = Gpt2Tokenizer().encode_documents(texts)[:2500]
    assert tokens_in(Path("out")).tolist() == expected.tolist()


def test_a_source_that_ends_early_is_taken_whole(
    parquet: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--workers", "0", "--val-tokens", "500")
    assert run("slim_pajama1B", *few, "--source", *parquet) == 0
    assert "fewer than the 1,000,000,000 training tokens asked for" in capsys.readouterr().err
    expected = Gpt2Tokenizer().encode_documents(SPEECHES)
    assert tokens_in(Path("data/slim_pajama1B")).tolist() == expected.tolist()
    manifest = Manifest.read(Path("data/slim_pajama1B"))
    assert manifest is not None
    assert sum(shard.documents for shard in manifest.shards) == len(SPEECHES)


class Stopped(Exception):
    """What ends a preparation in these tests."""


def preparation(directory: Path, files: list[str], stop_after: int | None) -> Preparation:
    """Return one that stops after so many batches of documents, if it is to stop."""
    source = files_source(files, "text")
    template = Manifest("finewebmini", "gpt2", "0" * 64, 50257, source, 9000, 900, 400)

    def stream_from(position: Position) -> Iterator[Tokenized]:
        stream = tokenized(documents(source, position.state), 0, None)
        for number, part in enumerate(stream):
            if number == stop_after:
                raise Stopped
            yield part

    directory.mkdir(exist_ok=True)
    return Preparation(directory, Manifest.read(directory) or template, stream_from)


def test_interrupted_after_each_batch_the_result_is_that_of_an_undisturbed_one(
    parquet: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.data.documents.BATCH", 7)
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    preparation(whole, parquet, None).make()
    interruptions, made = 0, None
    while made is None:
        assert interruptions < 100, "no attempt adds a shard"
        torn.mkdir(exist_ok=True)
        (torn / ".train_000003.bin.x1y2").write_bytes(b"what a kill leaves")
        try:
            made = preparation(torn, parquet, 6).make()
        except Stopped:
            interruptions += 1
    assert interruptions > 3
    assert contents(torn) == contents(whole)
    assert not [path for path in torn.iterdir() if path.name.startswith(".")]


def test_what_was_complete_at_the_end_of_the_source_stays_so(
    parquet: list[str], tmp_path: Path
) -> None:
    """A kill between the last shard and the last word of the manifest adds nothing twice."""
    made = preparation(tmp_path / "out", parquet, None)
    made.manifest = replace(made.manifest, tokens=10**9)
    before = made.make()
    replace(before, complete=False).write(tmp_path / "out")
    assert preparation(tmp_path / "out", parquet, None).make() == before


def test_damaged_and_missing_shards_are_made_again(parquet: list[str]) -> None:
    arguments = ("finewebmini", *SMALL[2:], "--workers", "0", "--source", *parquet)
    run(*arguments)
    directory = Path("data/finewebmini")
    before = contents(directory)
    (directory / "train_000002.bin").unlink()
    (directory / "train_000004.bin").write_bytes(b"short")
    assert run("finewebmini", "--workers", "0") == 0
    assert contents(directory) == before
    raw = bytearray((directory / "train_000003.bin").read_bytes())
    raw[HEADER_BYTES + 7] ^= 1
    (directory / "train_000003.bin").write_bytes(raw)
    assert run("finewebmini", "--workers", "0") == 0
    assert contents(directory) != before
    assert run("finewebmini", "--workers", "0", "--verify") == 0
    assert contents(directory) == before


def test_a_shard_that_comes_out_another_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in SPEECHES)
    Path("plays.jsonl").write_text(lines)
    run("finewebmini", *SMALL, "--source", "plays.jsonl")
    before = os.stat("plays.jsonl")
    Path("plays.jsonl").write_text(lines.replace("thou", "thee"))
    os.utime("plays.jsonl", ns=(before.st_atime_ns, before.st_mtime_ns))
    Path("data/finewebmini/train_000001.bin").unlink()
    capsys.readouterr()
    assert run("finewebmini", "--workers", "0") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: data/finewebmini/train_000001.bin comes out another than it was")
    assert said.count("\n") == 1


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trainer.prepare", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def shards_made(directory: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until so many shards are whole."""
    for _ in range(3000):
        found = Manifest.read(directory) if (directory / MANIFEST_FILE).exists() else None
        if found is not None and len(found.shards) >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("no shard within 30 s")


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_ctrl_c_and_kill_lose_nothing_and_leave_no_process(tmp_path: Path) -> None:
    text = load_shakespeare()
    speeches = [text[at : at + 4000] for at in range(0, len(text), 4000)] * 3
    pq.write_table(pa.table({"text": speeches}), "plays.parquet", row_group_size=64)
    size = ("--tokens", "900000", "--val-tokens", "15000", "--shard-tokens", "15000")
    begin = ("finewebmini", *size, "--source", "plays.parquet")
    directory = Path("data/finewebmini")

    process = started(*begin, "--workers", "2")
    shards_made(directory, 2, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    last = err.splitlines()[-1]
    assert process.returncode == 130, err
    assert last.startswith("interrupted; ")
    assert last.endswith(
        "shards are whole; python -m trainer.prepare finewebmini goes on after them"
    )
    assert "Traceback" not in err
    assert not out

    process = started("finewebmini", "--workers", "1")
    had = Manifest.read(directory)
    assert had is not None
    shards_made(directory, len(had.shards) + 1, process)
    workers = children(process.pid)
    process.kill()
    process.communicate()
    assert workers
    for _ in range(500):
        if not any(Path(f"/proc/{pid}").exists() for pid in workers):
            break
        time.sleep(0.01)
    else:
        raise AssertionError("a tokenizing process outlives its parent")

    left = Manifest.read(directory)
    assert left is not None
    assert not left.complete
    assert run("finewebmini", "--workers", "0") == 0
    assert run(*begin, "--workers", "0", "--out", "undisturbed") == 0
    assert contents(directory) == contents(Path("undisturbed"))
    assert not list(directory.glob(".*.bin.*"))


def test_it_goes_on_where_nobody_reads_how_far_it_is(parquet: list[str]) -> None:
    command = [sys.executable, "-m", "trainer.prepare", "finewebmini", *SMALL, "--source", *parquet]
    unread, stderr = os.pipe()
    os.close(unread)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, stderr=stderr, check=False)
    os.close(stderr)
    manifest = Manifest.read(Path("data/finewebmini"))
    assert (done.returncode, manifest is not None and manifest.complete) == (0, True)


def test_two_at_once_are_refused(parquet: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from rundir.files import locked

    Path("data/finewebmini").mkdir(parents=True)
    with locked(Path("data/finewebmini/.lock")):
        assert run("finewebmini", *SMALL, "--source", *parquet) == 2
    said = f"error: data/finewebmini is being prepared by process {os.getpid()} on "
    assert capsys.readouterr().err.startswith(said)


def test_the_hub_out_of_reach_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainer.prepare", "fineweb10B"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: HuggingFaceFW/fineweb can't be had from the Hugging Face")
    assert "add --source FILES (.parquet, .jsonl or .txt)" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("package", "name"), [("datasets", "fineweb1B"), ("zstandard", "slim_pajama1B")]
)
def test_a_missing_package_is_named(
    package: str,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find_spec(name)
    )
    assert run(name) == 2
    bring = "pip install -e '.[data]' in optsweep's directory brings it"
    said = f"error: preparing data needs {package}: {bring}\n"
    assert capsys.readouterr().err == said


def test_a_repository_with_configurations_is_streamed_by_its_name(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    (repo / "sample").mkdir(parents=True)
    (repo / "other").mkdir()
    for name, text in (("sample", "wanted"), ("other", "unwanted")):
        pq.write_table(pa.table({"text": [text], "url": ["u"]}), repo / name / "0.parquet")
    configs = "".join(
        f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("other", "sample")
    )
    (repo / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    source = {"repo": str(repo), "config": "sample", "revision": None, "column": "text"}
    assert [texts for _, texts in documents(source, None)] == [["wanted"]]


WRONG: list[tuple[tuple[str, ...], str]] = [
    ((), "NAME is missing; must be one of: finewebmini, "),
    (("finewebmimi",), "did you mean finewebmini?"),
    (("text",), "text needs no preparation: python launch.py data=text"),
    (
        ("finewebmini", "--wrokers", "1"),
        "unknown option --wrokers in python -m trainer.prepare; must",
    ),
    (("finewebmini", "--tokens", "0"), "--tokens = 0; must be at least 1"),
    (("finewebmini", "--workers", "-1"), "--workers = -1; must be at least 0"),
    (("finewebmini", "--column", "x"), "--column x: only with --source"),
    (
        ("finewebmini", "--source", "none.parquet"),
        "--source none.parquet: must be a file, or a glob that matches some",
    ),
    (
        ("finewebmini", "--source", "good.jsonl", "--out", "good.jsonl"),
        "--out good.jsonl: can't be made: File exists",
    ),
    (
        ("finewebmini", "--source", "good.jsonl", "--out", "good.jsonl/x"),
        "--out good.jsonl/x: can't be made: Not a directory",
    ),
    (
        ("finewebmini", "--source", "x.csv"),
        "--source x.csv: must end in .parquet, .jsonl, .json, .txt, or one of them and .gz or .zst",
    ),
    (
        ("finewebmini", "--source", "x.txt", "good.jsonl"),
        "--source has files of kinds json, text; must be of one",
    ),
    (
        ("finewebmini", "--source", "good.jsonl", "--column", "txt"),
        "--column txt: must be a column of {here}/good.jsonl: text, n",
    ),
    (
        ("finewebmini", "--source", "null.jsonl"),
        "{here}/null.jsonl: text of document 2 is None; must be a text",
    ),
    (("finewebmini", "--source", "bad.jsonl"), "{here}/bad.jsonl can't be read: ArrowInvalid: "),
    (("finewebmini", "--source", "bad.parquet"), "{here}/bad.parquet can't be read: ArrowInv"),
    (("finewebmini", "--source", "empty.jsonl"), "{here}/empty.jsonl can't be read: it holds no"),
    (
        ("finewebmini", "--source", "good.jsonl", "--val-tokens", "9", "--workers", "0"),
        "--val-tokens 9: must be less than 4, the tokens that the source holds",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[w[1][:40] for w in WRONG])
def test_wrong_input_is_one_line_and_leaves_nothing(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("x.csv").write_text("text\n")
    Path("x.txt").write_text("a text")
    Path("good.jsonl").write_text('{"text": "a", "n": 1}\n{"text": "b", "n": 2}\n')
    Path("null.jsonl").write_text('{"text": "a"}\n{"text": null}\n')
    Path("bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
    Path("bad.parquet").write_bytes(b"PAR1 nonsense")
    Path("empty.jsonl").write_text("")
    before = sorted(tmp_path.iterdir())
    assert run(*arguments) == 2
    said = [s for s in capsys.readouterr().err.splitlines() if not s.startswith("val_000000.bin")]
    assert len(said) == 1
    assert message.format(here=tmp_path) in said[0]
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != "data"] == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--tokens", "7"), "--tokens = 7; must be 2000, with which data/finewebmini was begun"),
        (("--shard-tokens", "7"), "--shard-tokens = 7; must be 600, with which data/finewebmini"),
        (("--source", "c.parquet"), "--source: must be the files with which data/"),
    ],
)
def test_going_on_otherwise_than_begun_is_refused(
    more: tuple[str, ...],
    message: str,
    parquet: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run("finewebmini", *SMALL, "--source", *parquet)
    (tmp_path / "c.parquet").write_bytes(Path(parquet[0]).read_bytes())
    before = contents(Path("data/finewebmini"))
    capsys.readouterr()
    assert run("finewebmini", *more) == 2
    assert message in capsys.readouterr().err
    assert run("fineweb1B", "--out", "data/finewebmini") == 2
    assert "NAME = 'fineweb1B'; must be finewebmini" in capsys.readouterr().err
    assert contents(Path("data/finewebmini")) == before


def test_a_source_that_has_changed_is_refused_when_it_is_needed(
    parquet: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("finewebmini", *SMALL, "--source", *parquet)
    Path("data/finewebmini/train_000001.bin").unlink()
    Path(parquet[0]).unlink()
    capsys.readouterr()
    assert run("finewebmini", "--workers", "0") == 2
    assert f"--source {parquet[0]}: is gone; must have " in capsys.readouterr().err


@pytest.mark.parametrize("named", [True, False])
def test_a_file_replaced_by_one_of_its_size_is_refused_when_it_is_needed(
    parquet: list[str], capsys: pytest.CaptureFixture[str], named: bool
) -> None:
    run("finewebmini", *SMALL, "--source", *parquet)
    Path("data/finewebmini/train_000001.bin").unlink()
    raw = Path(parquet[0]).read_bytes()
    Path(parquet[0]).unlink()
    Path(parquet[0]).write_bytes(raw)
    again = ["finewebmini", "--workers", "0", *(["--source", *parquet] if named else [])]
    capsys.readouterr()
    assert run(*again) == 2
    assert capsys.readouterr().err == (
        f"error: --source {parquet[0]}: was written since the preparation began; must be as it was "
        "at the beginning\n"
    )
    # Of what was begun before times were recorded, the sizes must do.
    manifest = Manifest.read(Path("data/finewebmini"))
    assert manifest is not None
    sizes = [[file, size] for file, size, _ in manifest.source["files"]]
    replace(manifest, source={**manifest.source, "files": sizes}).write(Path("data/finewebmini"))
    assert run(*again) == 0


def test_the_list_tells_what_is_prepared_and_where(
    parquet: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPTSWEEP_DATA", "elsewhere")
    assert shards_of("finewebmini") == Path("elsewhere/finewebmini")
    run("finewebmini", *SMALL, "--source", *parquet)
    capsys.readouterr()
    assert run("--list", "--json") == 0
    rows = {row["dataset"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == set(PREPARED)
    assert rows["finewebmini"]["state"] == "prepared"
    assert rows["finewebmini"]["bytes"] == 5000
    assert rows["finewebmini"]["directory"] == "elsewhere/finewebmini"
    assert rows["fineweb1B"]["state"] == "not prepared"
    assert rows["fineweb1B"]["tokens"] == 1_100_000_000
    assert run("--list") == 0
    table = capsys.readouterr().out
    for word in ("shakespeare", "text", "cerebras/SlimPajama-627B", "elsewhere/finewebmini"):
        assert word in table
