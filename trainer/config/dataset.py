"""The group ``data``: which tokens to train on."""

from __future__ import annotations

from dataclasses import dataclass

from rundir import unknown
from rundir.errors import require
from trainer.data.sources import DATASETS, TOKENIZERS


@dataclass(frozen=True)
class DatasetConfig:
    """Which tokens to train on; the last tenth is the validation split."""

    name: str = "shakespeare"
    """``shakespeare`` (nine plays, part of the package) or ``text`` (your UTF-8 files)."""
    tokenizer: str = "bytes"
    """``bytes`` (256 tokens) or ``gpt2`` (50257; needs the extra ``[gpt2]``)."""
    vocab_size: int | None = None
    """For models to refer to; null takes the tokenizer's."""
    path: str | None = None
    """``text`` only: a file, a glob, or a directory whose *.txt are read; in sorted order."""
    vocab_bpe: str | None = None
    """``gpt2`` only: GPT-2's vocab.bpe, for machines that can't download it."""

    def __post_init__(self) -> None:
        if self.name not in DATASETS:
            raise unknown("dataset", self.name, DATASETS)
        if self.tokenizer not in TOKENIZERS:
            raise unknown("tokenizer", self.tokenizer, TOKENIZERS)
        least = TOKENIZERS[self.tokenizer]
        require(
            self.vocab_size is None or self.vocab_size >= least,
            "vocab_size",
            self.vocab_size,
            f"at least {least}, the vocabulary of tokenizer {self.tokenizer}",
        )
        needs_path = self.name == "text"
        must = "the path of a text file" if needs_path else f"null for dataset {self.name}"
        require(bool(self.path) == needs_path, "path", self.path, must)
