"""Prepared data in training: mapped windows, their order, and a line for every wrong shard."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trainer
from rundir import Preempted, Run, UserError, exit_code_of, read_json
from rundir.files import iter_metrics
from trainer import DatasetConfig, TrainConfig, prepare
from trainer.data.batches import TrainingOrder, cut, validation_batches
from trainer.data.corpus import load_corpus, load_shakespeare
from trainer.data.headers import HEADER_BYTES
from trainer.data.manifest import MANIFEST_FILE, TRAINING, VALIDATION, prepared
from trainer.data.shards import TokenShards

Mapping = dict[str, Any]
Change = Callable[..., Mapping]

LATER = "format 2, of a later optsweep; this one reads format 1: it takes a newer optsweep"


def prepare_plays(directory: Path, shard_tokens: int) -> Path:
    texts = [speech.strip() for speech in load_shakespeare()[:60_000].split("\n\n")]
    plays = directory.parent / "plays.jsonl"
    plays.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    size = ("--tokens", "9000", "--val-tokens", "700", "--shard-tokens", str(shard_tokens))
    arguments = ["finewebmini", *size, "--source", str(plays), "--out", str(directory)]
    assert prepare.main([*arguments, "--workers", "0"]) == 0
    return directory


@pytest.fixture(scope="module")
def plays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """9,000 tokens in shards of 500, and 700 for validation in two."""
    return prepare_plays(tmp_path_factory.mktemp("plays") / "shards", 500)


@pytest.fixture
def shards(plays: Path, tmp_path: Path) -> Path:
    """As ``plays``, to be damaged."""
    return Path(shutil.copytree(plays, tmp_path / "shards"))


def opened(directory: Path, split: str = TRAINING) -> TokenShards:
    return TokenShards(directory, prepared("finewebmini", directory), split)


def whole(directory: Path, split: str = TRAINING) -> np.ndarray[Any, Any]:
    files = sorted(directory.glob(f"{split}_*.bin"))
    return np.concatenate([np.fromfile(file, "<u2", offset=HEADER_BYTES) for file in files])


def test_windows_are_those_of_one_array_across_the_ends_of_shards(plays: Path) -> None:
    tokens, array = opened(plays), whole(plays)
    assert len(tokens) == len(array) == 9000
    # 499 and 500 touch an end; 1200 tokens reach over three shards.
    for length, starts in ((17, [0, 483, 484, 499, 500, 8983]), (1200, [450, 7800])):
        inputs, targets = cut(tokens, np.array(starts), length - 1)
        mine, theirs = cut(array, np.array(starts), length - 1)
        assert torch.equal(inputs, mine)
        assert torch.equal(targets, theirs)
        assert inputs.dtype == torch.int64


def test_reading_maps_the_files_and_loads_none(plays: Path) -> None:
    for part in opened(plays)._parts:
        assert isinstance(part.base, np.memmap)
        assert not part.flags.writeable


def starts(order: TrainingOrder, step: int, sequences: int, batch: int) -> list[list[int]]:
    return [row.tolist() for x, _ in order.micro_batches(step, sequences, batch) for row in x]


def test_the_order_does_not_depend_on_how_the_tokens_are_cut(plays: Path, tmp_path: Path) -> None:
    other = prepare_plays(tmp_path / "other", 2345)
    ours = TrainingOrder(opened(plays), 10, seed=3)
    theirs = TrainingOrder(opened(other), 10, seed=3)
    for step in (0, 111, 112, 113, 700):  # a pass is 899 windows, the third step crosses into one
        assert starts(ours, step, 8, 4) == starts(theirs, step, 8, 4)
    assert starts(ours, 5, 8, 4) != starts(TrainingOrder(opened(plays), 10, seed=4), 5, 8, 4)


def test_a_pass_over_shards_reads_every_window_once(plays: Path) -> None:
    array = whole(plays)
    order = TrainingOrder(opened(plays), 10, seed=3)
    read = starts(order, 0, 899, 31)
    found = [at for at in range(11) if read and sorted(map(tuple, read)) == cut_up(array, at)]
    assert len(found) >= 1
    assert read != starts(order, 1, 899, 31)


def cut_up(array: np.ndarray[Any, Any], offset: int) -> list[tuple[int, ...]]:
    """Return all windows of a pass with this offset, sorted."""
    rows = array[offset : offset + 8990].reshape(-1, 10)
    return sorted(map(tuple, rows.tolist()))


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_batches_of_one_process(plays: Path, world: int) -> None:
    alone = starts(TrainingOrder(opened(plays), 10, seed=3), 5, 8, 4)
    parts = [
        list(TrainingOrder(opened(plays), 10, 3, rank=r, world=world).micro_batches(5, 8, 4))
        for r in range(world)
    ]
    joined = [torch.cat([inputs for inputs, _ in step]) for step in zip(*parts, strict=True)]
    assert torch.cat(joined).tolist() == alone


def test_validation_reads_the_validation_shards(plays: Path) -> None:
    array = whole(plays, VALIDATION)
    assert len(array) == 700
    mine = validation_batches(opened(plays, VALIDATION), 10, 4, 130)
    theirs = validation_batches(array, 10, 4, 130)
    for (x, _), (expected, _) in zip(mine, theirs, strict=True):
        assert torch.equal(x, expected)


def on(plays: Path, mapping: Mapping) -> Mapping:
    dataset = {"name": "finewebmini", "tokenizer": "gpt2", "path": str(plays)}
    mapping["data"] = {"dataset": dataset}
    mapping["model"]["config"]["vocab_size"] = 50257
    return mapping


def curve(path: Path, mapping: Mapping) -> dict[tuple[str, int], float]:
    """Train, and return the losses by stream and step; later attempts count."""
    with Run(path, threads=1) as run:
        trainer.train(TrainConfig.from_mapping(mapping), run)
    return {(r["stream"], r["step"]): r["loss"] for r in iter_metrics(path / "metrics.jsonl")}


def test_training_on_shards_resumes_to_the_bit(
    plays: Path, tiny: Mapping, tmp_path: Path, stopping_run: type[Run]
) -> None:
    mapping = on(plays, tiny)
    undisturbed = curve(tmp_path / "a", mapping)
    stopped = pytest.raises(Preempted, match="step 5 of 12")
    with stopping_run(tmp_path / "b", 5) as run, stopped as kept:
        trainer.train(TrainConfig.from_mapping(mapping), run)
    # Also while somebody keeps the error, and with it all that was in memory.
    assert kept.tb
    assert "prefetch" not in {thread.name for thread in threading.enumerate()}
    assert curve(tmp_path / "b", mapping) == undisturbed
    assert {stream for stream, _ in undisturbed} == {"train", "val"}


@pytest.mark.parametrize("is_same", [True, False])
def test_resumed_on_shards_cut_otherwise_only_other_tokens_are_told(
    plays: Path,
    tiny: Mapping,
    tmp_path: Path,
    stopping_run: type[Run],
    caplog: pytest.LogCaptureFixture,
    is_same: bool,
) -> None:
    undisturbed = curve(tmp_path / "a", on(plays, tiny))
    with stopping_run(tmp_path / "b", 5) as run, pytest.raises(Preempted):
        trainer.train(TrainConfig.from_mapping(on(plays, tiny)), run)
    recut = tmp_path / "recut"
    sizes = ("--tokens", "9000", "--val-tokens", "700", "--shard-tokens", "2345")
    source = Path(prepared("finewebmini", plays).source["files"][0][0])
    if not is_same:
        documents = source.read_text().splitlines(keepends=True)
        source = tmp_path / "other.jsonl"
        source.write_text("".join(reversed(documents)))
    arguments = ["finewebmini", *sizes, "--source", str(source), "--out", str(recut)]
    assert prepare.main([*arguments, "--workers", "0"]) == 0
    caplog.clear()
    assert (curve(tmp_path / "b", on(recut, tiny)) == undisturbed) is is_same
    assert any("other batches follow" in line for line in caplog.messages) is not is_same


def test_launching_onto_a_cluster_reads_the_manifest_and_no_shard(
    plays: Path, tiny: Mapping, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(plays / MANIFEST_FILE, bare)
    trainer.check(on(bare, tiny))


def edit(directory: Path, **values: object) -> None:
    path = directory / MANIFEST_FILE
    path.write_text(json.dumps({**(read_json(path) or {}), **values}))


def at_launch(mapping: Mapping, capsys: pytest.CaptureFixture[str], *, here: bool = False) -> str:
    """Return what a launch, onto a cluster or here, says of a configuration that it refuses."""

    def command() -> int:
        trainer.check(mapping, here=here)
        return 0

    assert exit_code_of(command) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said.removeprefix("error: ").rstrip()


def test_unprepared_data_is_refused_with_the_command_that_prepares_it(
    tiny: Mapping,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPTSWEEP_DATA", raising=False)
    mapping = on(tmp_path, tiny)
    mapping["data"]["dataset"]["path"] = None
    assert at_launch(mapping, capsys) == (
        "data.dataset.name = 'finewebmini'; its shards are not in data/finewebmini; make them "
        "with: python -m trainer.prepare finewebmini"
    )
    mapping["data"]["dataset"]["path"] = "mine"
    assert at_launch(mapping, capsys).endswith("python -m trainer.prepare finewebmini --out mine")
    mapping["data"]["dataset"]["tokenizer"] = "bytes"
    assert at_launch(mapping, capsys) == (
        "data.dataset.tokenizer = 'bytes'; must be gpt2 for finewebmini"
    )


def test_what_is_wrong_with_the_manifest_is_told_at_launch(
    shards: Path, tiny: Mapping, change: Change, capsys: pytest.CaptureFixture[str]
) -> None:
    mapping = on(shards, tiny)
    sound = (shards / MANIFEST_FILE).read_text()
    again = f"python -m trainer.prepare finewebmini --out {shards}"
    for values, said in (
        ({"complete": False}, f"holds 9,700 of 9,700 tokens; go on with: {again}"),
        ({"version": 2}, f"manifest.json has {LATER}"),
        ({"version": "2"}, "manifest.json is damaged: its format is '2'; delete its directory"),
        ({"dataset": "fineweb1B"}, f"must be fineweb1B, which {shards} holds"),
        ({"tokenizer_sha256": "ab" * 32}, "tokenizer = 'gpt2'; must be gpt2 (abababab), as in"),
        ({"shards": [{}]}, "is damaged"),
        ({"more": 1}, "is damaged"),
    ):
        edit(shards, **values)
        assert said in at_launch(mapping, capsys)
        (shards / MANIFEST_FILE).write_text(sound)
    (shards / MANIFEST_FILE).write_text(sound[:100])
    assert "is damaged: it is no JSON object" in at_launch(mapping, capsys)


def test_a_context_or_a_vocabulary_that_does_not_fit_is_told_at_launch(
    plays: Path, tiny: Mapping, capsys: pytest.CaptureFixture[str]
) -> None:
    mapping = on(plays, tiny)
    mapping["model"]["config"]["vocab_size"] = 50256
    assert at_launch(mapping, capsys) == (
        "model.config.vocab_size = 50256; must be at least 50257, the vocabulary of tokenizer gpt2"
    )
    mapping["model"]["config"]["vocab_size"] = 50257
    params = mapping["training"]["training_params"]
    params |= {"context_length": 700, "tokens_processed": 2800, "val_tokens_processed": 700}
    assert at_launch(mapping, capsys) == (
        "training.training_params.context_length = 700; must be at most 699: finewebmini has 9700 "
        "tokens, 700 for validation"
    )
    params |= {"context_length": 16, "tokens_processed": 9024, "max_steps": None}
    assert "tokens_processed = 9024; must be at most 9000" in at_launch(mapping, capsys)


def patch(path: Path, at: int, raw: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(raw)


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: path.unlink(), "{path}: No such file or directory"),
    (lambda path: patch(path, 0, b"\x00" * 8), "{path} is no shard of tokens: its magic is b'\\x"),
    (lambda path: path.write_bytes(b""), "{path} is no shard of tokens: its magic is b''"),
    (
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        "{path} is truncated: it has 100 bytes, less than a header",
    ),
    (
        lambda path: path.write_bytes(path.read_bytes()[:-2]),
        "{path} is truncated: it has 1254 bytes; must be 1256, for 500 tokens",
    ),
    (lambda path: patch(path, 8, b"\x00"), "{path} is damaged: its format is 0; must be 1"),
    (
        lambda path: patch(path, 24, b"\xab" * 32),
        "{path}: its tokens are of tokenizer abababab; must be gpt2 (1ce16647)",
    ),
    (
        lambda path: shutil.copy(path.with_name("train_000005.bin"), path),
        "{path} is another shard than manifest.json names: 500 tokens of hash ",
    ),
]


@pytest.mark.parametrize(("harm", "message"), DAMAGE, ids=[text[:40] for _, text in DAMAGE])
def test_a_wrong_shard_is_told_at_a_launch_here_and_before_the_first_step(
    harm: Callable[[Path], object],
    message: str,
    shards: Path,
    tiny: Mapping,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = shards / "train_000003.bin"
    harm(path)
    with pytest.raises(UserError) as error:
        load_corpus(DatasetConfig(name="finewebmini", tokenizer="gpt2", path=str(shards)))
    said = str(error.value)
    assert said == at_launch(on(shards, tiny), capsys, here=True)
    assert said.startswith(message.format(path=path))
    assert said.endswith(f"; python -m trainer.prepare finewebmini --out {shards} makes it again")
    assert "\n" not in said
    assert prepare.main(["finewebmini", "--out", str(shards), "--workers", "0"]) == 0
    load_corpus(DatasetConfig(name="finewebmini", tokenizer="gpt2", path=str(shards)))


def test_a_shard_of_a_later_format_is_told_apart_and_kept(
    shards: Path, tiny: Mapping, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shards / "train_000003.bin"
    patch(path, 8, b"\x02")
    before = path.read_bytes()
    assert at_launch(on(shards, tiny), capsys, here=True) == f"{path} has {LATER}"
    assert prepare.main(["finewebmini", "--out", str(shards), "--workers", "0"]) == 2
    assert capsys.readouterr().err == f"error: {path} has {LATER}\n"
    assert path.read_bytes() == before


def test_a_token_that_is_none_is_told_where_it_is_read(shards: Path) -> None:
    path = shards / "train_000003.bin"
    tokens = opened(shards)
    starts, out = np.array([0, 600]), np.empty((2, 50), dtype=np.int64)
    tokens.read(starts, out)
    patch(path, HEADER_BYTES + 2 * 110, b"\xff\xff")
    with pytest.raises(UserError) as error:
        tokens.read(starts, out)
    again = f"python -m trainer.prepare finewebmini --out {shards} --verify mends it"
    assert str(error.value) == (
        f"{path}, or the shard that follows it, is damaged: it holds a token 65535; must be below "
        f"50257; {again}"
    )
    arguments = ["finewebmini", "--out", str(shards), "--workers", "0", "--verify"]
    assert prepare.main(arguments) == 0
    opened(shards).read(starts, out)
