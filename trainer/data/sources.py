"""What data there is and how large it is, without loading torch, numpy or the data."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from rundir import UserError

TOKENIZERS = {"bytes": 256, "gpt2": 50257}
"""Vocabulary of each tokenizer."""

SHAKESPEARE_TOKENS = {"bytes": 1_188_824, "gpt2": 360_175}
"""Tokens of the dataset ``shakespeare`` under each tokenizer."""

DATASETS = ("shakespeare", "text")
"""The legal ``data.dataset.name``s."""

VALIDATION_PART = 10
"""The last 1/VALIDATION_PART of the tokens, rounded down, is the validation split."""


def split(tokens: int) -> tuple[int, int]:
    """Return how many of ``tokens`` tokens are for training and, after those, for validation."""
    validation = tokens // VALIDATION_PART
    return tokens - validation, validation


def count_tokens(dataset: str, tokenizer: str, path: str | None) -> int | None:
    """Return the tokens of a dataset; None where only tokenizing would tell.

    Raises:
        UserError: ``path`` matches no file.
    """
    if dataset == "shakespeare":
        return SHAKESPEARE_TOKENS[tokenizer]
    size = sum(os.path.getsize(file) for file in text_files(path or ""))
    return size if tokenizer == "bytes" else None


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
