"""What data there is and how large it is, without loading torch, numpy or the data."""

from __future__ import annotations

import codecs
import glob
import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from rundir import UserError
from rundir.errors import IllegalValue
from trainer.data.catalogue import PREPARED, shards_of
from trainer.data.headers import check_headers
from trainer.data.manifest import TRAINING, VALIDATION, prepared

TOKENIZERS = {"bytes": 256, "gpt2": 50257}
"""Vocabulary of each tokenizer."""

TOKENIZER_HASHES = {"gpt2": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"}
"""SHA-256 of GPT-2's published vocab.bpe, from which its tokens follow."""

SHAKESPEARE_TOKENS = {"bytes": 1_188_824, "gpt2": 360_175}
"""Tokens of the dataset ``shakespeare`` under each tokenizer."""

DATASETS = ("shakespeare", "text", *PREPARED)
"""The legal ``data.dataset.name``s."""

VALIDATION_PART = 10
"""The last 1/VALIDATION_PART of the tokens, rounded down, is the validation split; prepared
datasets have one of their own."""


CHECKED_BYTES = 1 << 26
"""How much of a text a launch reads, of all its files together; a fifth of a second's work."""

_CHUNK_BYTES = 1 << 20


class Splits(NamedTuple):
    """How many tokens there are."""

    train: int
    validation: int


def split(tokens: int) -> Splits:
    """Return how many of ``tokens`` tokens are for training and, after those, for validation."""
    validation = tokens // VALIDATION_PART
    return Splits(tokens - validation, validation)


def sizes(dataset: str, tokenizer: str, path: str | None) -> Splits | None:
    """Return the tokens of a dataset's splits; None where only tokenizing would tell.

    Raises:
        UserError: ``path`` matches no file, or the dataset is not prepared.
    """
    if dataset in PREPARED:
        return _prepared_sizes(dataset, tokenizer, path)
    if dataset == "shakespeare":
        return split(SHAKESPEARE_TOKENS[tokenizer])
    size = sum(os.path.getsize(file) for file in text_files(path or ""))
    return split(size) if tokenizer == "bytes" else None


def _prepared_sizes(dataset: str, tokenizer: str, path: str | None) -> Splits:
    directory = shards_of(dataset, path)
    manifest = prepared(dataset, directory)
    if (manifest.tokenizer, manifest.tokenizer_sha256) != (tokenizer, TOKENIZER_HASHES[tokenizer]):
        must = f"{manifest.tokenizer} ({manifest.tokenizer_sha256[:8]}), as in {directory}"
        raise IllegalValue("data.dataset.tokenizer", tokenizer, must)
    return Splits(manifest.total(TRAINING), manifest.total(VALIDATION))


def text_files(path: str) -> list[Path]:
    """Return the files of dataset ``text`` in sorted order.

    Raises:
        UserError: there are none.
    """
    at = Path(path).expanduser()
    found = sorted(at.rglob("*.txt")) if at.is_dir() else map(Path, sorted(glob.glob(str(at))))
    files = [file for file in found if file.is_file()]
    if not files:
        raise UserError(
            f"data.dataset.path = {path!r}; must be a text file, a glob that matches some, "
            "or a directory with *.txt files"
        )
    return files


def check_contents(dataset: str, path: str | None, *, here: bool) -> None:
    """Refuse data of which a look tells that no run can train on it.

    Args:
        dataset: its name.
        path: ``data.dataset.path``.
        here: whether runs read it on this machine; only then are the shards looked at, as a cluster
            may have them where its login node has their manifest alone.

    Raises:
        UserError: the first CHECKED_BYTES of a text are not UTF-8, or a shard is not what the
            manifest says.
    """
    if dataset == "text":
        found = [(file, file.stat()) for file in text_files(path or "")]
        _check_text(tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in found))
    elif dataset in PREPARED and here:
        check_headers(dataset, shards_of(dataset, path))


@lru_cache(maxsize=16)
def _check_text(files: tuple[tuple[Path, int, int], ...]) -> None:
    left = CHECKED_BYTES
    for file, size, _ in files:
        for _ in decoded(file, most=left):
            pass
        left -= min(left, size)


def decoded(file: Path, most: int = sys.maxsize) -> Iterator[str]:
    """Yield the text of a file, or of its first ``most`` bytes, in pieces.

    Raises:
        UserError: it is not UTF-8, or can't be read.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    read = 0
    try:
        with file.open("rb") as stream:
            while raw := stream.read(min(_CHUNK_BYTES, most - read)):
                yield decoder.decode(raw)
                read += len(raw)
            decoder.decode(b"", final=not stream.read(1))
    except UnicodeDecodeError as error:
        at = read - len(decoder.getstate()[0]) + error.start
        raise UserError(f"data.dataset.path: {file} is not UTF-8 at byte {at}") from None
    except OSError as error:
        raise UserError(f"data.dataset.path: {file}: {error.strerror}") from None
