"""The datasets that ``python -m trainer.prepare`` knows, and where their shards lie.

Names, sources and sizes are GPT-opt's. Loads neither torch nor numpy.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

HOME_VARIABLE = "OPTSWEEP_DATA"
"""Environment variable that names the directory of prepared datasets; ``data`` by default."""


@dataclass(frozen=True)
class HubDataset:
    """A dataset of the Hugging Face hub, and how much of it is taken."""

    repo: str
    """Owner and name."""
    config: str | None
    """Which of its configurations; None where there is but one."""
    tokens: int
    """Tokens for training; fewer where the source holds fewer."""
    val_tokens: int
    """Tokens for validation: those that come first."""
    needs: str | None = None
    """Package that its files take beside ``datasets``."""


def _fineweb(tokens: int, val_tokens: int) -> HubDataset:
    return HubDataset("HuggingFaceFW/fineweb", "sample-10BT", tokens, val_tokens)


def _slim_pajama(tokens: int, val_tokens: int) -> HubDataset:
    return HubDataset("cerebras/SlimPajama-627B", None, tokens, val_tokens, "zstandard")


_M = 10**6

PREPARED = {
    "finewebmini": _fineweb(100 * _M, 10 * _M),
    "fineweb1B": _fineweb(1000 * _M, 100 * _M),
    "fineweb10B": _fineweb(10_000 * _M, 100 * _M),
    "slim_pajama1B": _slim_pajama(1000 * _M, 100 * _M),
    "slim_pajama10B": _slim_pajama(10_000 * _M, 100 * _M),
}
"""By the ``data.dataset.name`` of those who train on them."""


def shards_of(name: str, path: str | None = None) -> Path:
    """Return the directory of a dataset's shards, there or not.

    Args:
        name: of the dataset.
        path: ``data.dataset.path``; null is NAME below $OPTSWEEP_DATA, or below ``data``.
    """
    home = os.environ.get(HOME_VARIABLE) or "data"
    return Path(path or Path(home) / name).expanduser()


def command(name: str, directory: Path) -> str:
    """Return what to type to have a dataset's shards made, finished or mended."""
    out = "" if directory == shards_of(name) else f" --out {directory}"
    return f"python -m trainer.prepare {name}{out}"
