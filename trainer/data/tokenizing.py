"""Documents to tokens in several processes, in the order of the documents."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rundir import OptsweepError
from trainer.data.documents import Documents
from trainer.data.tokenizers import Gpt2Tokenizer

WAITING = 8
"""Batches in work or done for each process: memory is bounded, and no process waits for another."""

_tokenizer: Gpt2Tokenizer | None = None
"""Of a worker process."""


@dataclass(frozen=True)
class Tokenized:
    """The tokens of some documents."""

    state: Mapping[str, Any]
    """Of the stream, before them."""
    tokens: NDArray[np.uint16]
    """(N,); each document begins with <|endoftext|>."""


def tokenized(
    documents: Iterator[Documents], workers: int, vocab_bpe: str | None
) -> Iterator[Tokenized]:
    """Yield the tokens of the documents, whatever process made them, in their order.

    Args:
        documents: read in this process, a bounded number of batches ahead.
        workers: processes; 0 works in this one.
        vocab_bpe: see :class:`Gpt2Tokenizer`.

    Raises:
        UserError: there is no tokenizer.
        OptsweepError: a worker was killed.
    """
    here = Gpt2Tokenizer(vocab_bpe)
    if workers == 0:
        for state, texts in documents:
            yield Tokenized(state, here.encode_documents(texts))
        return
    # Spawned: a fork would take the threads of datasets and Arrow along in whatever state.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _begin, (vocab_bpe,))
    pending: deque[tuple[Mapping[str, Any], Future[NDArray[np.uint16]]]] = deque()
    try:
        for state, texts in documents:
            pending.append((state, pool.submit(_tokens_of, texts)))
            if len(pending) >= WAITING * workers:
                yield _taken(*pending.popleft())
        while pending:
            yield _taken(*pending.popleft())
    except BrokenProcessPool:
        raise OptsweepError(
            "a tokenizing process was killed; is memory short? --workers sets how many there are"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _taken(state: Mapping[str, Any], future: Future[NDArray[np.uint16]]) -> Tokenized:
    return Tokenized(state, future.result())


def _begin(vocab_bpe: str | None) -> None:
    """Prepare a worker process, which ends with its parent, however that ends."""
    global _tokenizer  # noqa: PLW0603 - a worker has one tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _tokenizer = Gpt2Tokenizer(vocab_bpe)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _tokens_of(texts: list[str]) -> NDArray[np.uint16]:
    assert _tokenizer is not None  # noqa: S101 - the pool's initializer has run
    return _tokenizer.encode_documents(texts)
