"""The tokens of a dataset, split for training and validation."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import lzma
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rundir import OptsweepError
from rundir.files import replacing
from trainer.config import DatasetConfig
from trainer.data.batches import Tokens
from trainer.data.catalogue import PREPARED, shards_of
from trainer.data.manifest import TRAINING, VALIDATION, prepared
from trainer.data.shards import TokenShards
from trainer.data.sources import Splits, decoded, split, text_files
from trainer.data.tokenizers import VOCAB_BPE_SHA256, ByteTokenizer, Gpt2Tokenizer

log = logging.getLogger(__name__)

SHAKESPEARE_SHA256 = "7625c79c726a206afb243c18921d1ea48acb56a6a1ae60e1678eb8b6e2cf4ecc"
"""Of the uncompressed text."""

CONTENT_DIGITS = 12
"""Of the hash that tells one content of a dataset from another."""

CACHE_VARIABLE = "OPTSWEEP_CACHE"
"""Environment variable that names the directory of tokenized data; ~/.cache/optsweep by default."""


@dataclass(frozen=True)
class Corpus:
    """Token ids, uint8 or uint16, of the two splits."""

    train: Tokens
    validation: Tokens
    content: str
    """Hash of all the tokens, the first digits of it. Of prepared ones it goes by the shards: cut
    otherwise, the same tokens have another."""
    origin: str
    """Hash of what prepared tokens follow from, however they are cut; otherwise the content."""

    @property
    def sizes(self) -> Splits:
        """Tokens of each."""
        return Splits(len(self.train), len(self.validation))


def load_corpus(config: DatasetConfig) -> Corpus:
    """Read and tokenize a dataset, or map the shards of one that is prepared.

    Costs about 0.1 s for ``shakespeare`` in bytes. GPT-2 tokens are kept in the cache directory,
    under the hash of the text.

    Raises:
        UserError: a file can't be read as UTF-8, the tokenizer is missing, or a shard is missing
            or not what it should be.
        OptsweepError: the embedded text is damaged.
    """
    if config.name in PREPARED:
        return _shards(config)
    text = load_shakespeare() if config.name == "shakespeare" else _text(config.path or "")
    if config.tokenizer == "bytes":
        tokens: NDArray[Any] = ByteTokenizer().encode(text)
    else:
        tokens = _gpt2_tokens(text, config.vocab_bpe)
    training, _ = split(len(tokens))
    content = hashlib.sha256(np.ascontiguousarray(tokens).data).hexdigest()[:CONTENT_DIGITS]
    return Corpus(tokens[:training], tokens[training:], content, origin=content)


def _shards(config: DatasetConfig) -> Corpus:
    directory = shards_of(config.name, config.path)
    manifest = prepared(config.name, directory)
    train, validation = (TokenShards(directory, manifest, s) for s in (TRAINING, VALIDATION))
    content = _digits("".join(shard.sha256 for shard in manifest.shards))
    made_of = [manifest.source, manifest.tokenizer_sha256, len(validation), len(train)]
    origin = _digits(json.dumps(made_of, sort_keys=True))
    log.info(
        "%s: %d tokens in %d shards of %s, content %s",
        config.name,
        len(train) + len(validation),
        len(manifest.shards),
        directory,
        content,
    )
    return Corpus(train, validation, content, origin)


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:CONTENT_DIGITS]


def load_shakespeare() -> str:
    """Return the embedded plays.

    Raises:
        OptsweepError: they are damaged.
    """
    packed = (resources.files("trainer.data") / "shakespeare.txt.xz").read_bytes()
    raw = lzma.decompress(packed)
    if hashlib.sha256(raw).hexdigest() != SHAKESPEARE_SHA256:
        raise OptsweepError("trainer/data/shakespeare.txt.xz is damaged: its hash is another")
    return raw.decode()


def _text(path: str) -> str:
    return "".join(piece for file in text_files(path) for piece in decoded(file))


def _gpt2_tokens(text: str, vocab_bpe: str | None) -> NDArray[np.uint16]:
    content = hashlib.sha256(text.encode()).hexdigest()[:24]
    cache = Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/optsweep").expanduser()
    path = cache / f"gpt2-{VOCAB_BPE_SHA256[:8]}-{content}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # there is none, or a damaged one
        cached: NDArray[np.uint16] = np.load(path)
        return cached
    tokens = Gpt2Tokenizer(vocab_bpe).encode(text)
    with contextlib.suppress(OSError):  # an unwritable cache costs the next run a second
        cache.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:  # runs that start together write the same file
            np.save(file, tokens)
    return tokens
