"""The group ``data``: which tokens to train on."""

from __future__ import annotations

from dataclasses import dataclass

from rundir import unknown
from rundir.errors import require
from trainer.data.catalogue import PREPARED
from trainer.data.sources import DATASETS, TOKENIZERS, Splits


@dataclass(frozen=True)
class DatasetConfig:
    """Which tokens to train on.

    The validation split is the last tenth of ``shakespeare`` and ``text``, and the first shards of
    what is prepared.
    """

    name: str = "shakespeare"
    """``shakespeare`` (nine plays, part of the package), ``text`` (your UTF-8 files), or one that
    ``python -m trainer.prepare`` makes: fineweb1B, slim_pajama10B, …"""
    tokenizer: str = "bytes"
    """``bytes`` (256 tokens) or ``gpt2`` (50257; needs the extra ``[gpt2]``); gpt2 where
    prepared."""
    vocab_size: int | None = None
    """For models to refer to; null takes the tokenizer's."""
    path: str | None = None
    """Of ``text`` a file, a glob, or a directory whose *.txt are read, in sorted order. Of a
    prepared dataset where its shards lie; null: in NAME below $OPTSWEEP_DATA or below ``data``."""
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
        if self.name in PREPARED:
            require(self.tokenizer == "gpt2", "tokenizer", self.tokenizer, f"gpt2 for {self.name}")
            return
        needs_path = self.name == "text"
        must = "the path of a text file" if needs_path else f"null for dataset {self.name}"
        require(bool(self.path) == needs_path, "path", self.path, must)

    def validation_share(self, tokens: Splits) -> str:
        """Say how much of the data is for validation."""
        return f"{tokens.validation}" if self.name in PREPARED else "a tenth"
