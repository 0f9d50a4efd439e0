"""Checkpoints that survive being interrupted: whole files only, hash checked, older ones kept.

``checkpoints/step-00000500.pt`` replaces nothing until it is whole and on the disk. Then follows
``checkpoints/step-00000500.pt.sha256``, which makes it count: in the format of sha256sum, and where
the step was validated with the line ``# validation loss 1.25``.
"""

from __future__ import annotations

import hashlib
import logging
import math
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch

from rundir import UserError
from rundir.files import replacing

log = logging.getLogger(__name__)

FORMAT = 1
"""Of the state in a checkpoint; those of 0 lack the keys that came later."""

_NAME = re.compile(r"step-(\d{8,})\.pt")
_UNFINISHED = re.compile(r"\.step-\d{8,}\.pt\..+")
_LOSS = re.compile(r"^# validation loss (\S+)$", re.MULTILINE)
_NEEDED = frozenset({"step", "model_config", "optimizer_name", "model", "optimizer", "rng"})


@dataclass(frozen=True)
class Kept:
    """Which checkpoints stay when another one is written."""

    last: int = 2
    """The newest ones, that one included."""
    best: int = 0
    """Besides those, the ones of lowest validation loss."""


def save_checkpoint(
    directory: Path,
    step: int,
    state: dict[str, Any],
    kept: Kept,
    *,
    loss: float | None = None,
    permit: Callable[[], None] | None = None,
) -> Path:
    """Write ``state`` for ``step`` in one atomic, durable step, then drop those not kept.

    Args:
        directory: created if needed.
        step: optimizer steps done.
        state: tensors, numbers, texts and containers of those; nothing that needs pickled code.
        kept: which ones stay; of later steps all do.
        loss: the validation loss after this step, where it is known.
        permit: called with each piece that is written, and before each name appears or goes;
            raises to forbid it.

    Raises:
        OSError: the file can't be written; the earlier checkpoints are untouched.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path, digest = path_of(directory, step), hashlib.sha256()
    with replacing(path, permit) as file:
        _save(state, _HashedFile(file, digest, permit))
    _write_hash(path, digest.hexdigest(), loss, permit)
    for old in _not_kept(directory, step, kept):
        if permit is not None:
            permit()
        # In this order what a kill leaves is listed, and dropped the next time.
        _hash_path(old).unlink(missing_ok=True)
        old.unlink(missing_ok=True)
    return path


def note_loss(path: Path, loss: float, permit: Callable[[], None] | None = None) -> None:
    """Put the validation loss on record beside a whole checkpoint that was saved without it.

    Raises:
        OSError: it can't be written; the checkpoint is as it was.
    """
    digest, *_ = _hash_path(path).read_text("utf-8").split()
    _write_hash(path, digest, loss, permit)


def newest_checkpoint(directory: Path) -> Path | None:
    """Return the newest whole checkpoint, having read it once; None if there is none.

    A damaged one is named in the log and passed over for the one before it.
    """
    for _, path in list_checkpoints(directory):
        fault = fault_of(path)
        if fault is None:
            return path
        log.warning("checkpoint %s is not usable (%s); looking for an older one", path.name, fault)
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state in a whole checkpoint, its tensors on the CPU.

    Raises:
        UserError: it holds something else, or what only later versions read.
    """
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, UnicodeDecodeError):
        state = None
    if not isinstance(state, dict) or not state.keys() >= _NEEDED:
        raise UserError(f"{path} is no checkpoint of a run; move it out of the way")
    found = state.get("format", 0)
    if found > FORMAT:
        raise UserError(
            f"{path} has format {found}; must be at most {FORMAT}, which this version reads: "
            "it takes the later one that wrote it"
        )
    return state


def list_checkpoints(directory: Path) -> list[tuple[int, Path]]:
    """Return (step, path) of the checkpoint files, newest first, damaged ones too."""
    if not directory.is_dir():
        return []
    named = ((_NAME.fullmatch(path.name), path) for path in directory.iterdir())
    return sorted(((int(name[1]), path) for name, path in named if name), reverse=True)


def list_finished(directory: Path) -> list[tuple[int, Path]]:
    """Return those that were written to their end, newest first."""
    return [(at, path) for at, path in list_checkpoints(directory) if _hash_path(path).exists()]


def losses_of(directory: Path) -> dict[int, float]:
    """Return the validation losses of the checkpoints by step, where they are on record."""
    found = {}
    for step, path in list_checkpoints(directory):
        try:
            noted = _LOSS.search(_hash_path(path).read_text("utf-8"))
            if noted:
                found[step] = float(noted[1])
        except (OSError, ValueError):  # then it is not whole
            continue
    return found


def best_steps(losses: dict[int, float], count: int) -> list[int]:
    """Return the steps of the lowest losses, the lowest first; of equal ones the earlier.

    NaN compares with nothing, and is none of the best.
    """
    numbers = [step for step, loss in losses.items() if not math.isnan(loss)]
    return sorted(numbers, key=lambda step: (losses[step], step))[:count]


def remove_unfinished(directory: Path) -> None:
    """Remove what attempts that were killed while they wrote have left of a file."""
    if directory.is_dir():
        for path in directory.iterdir():
            if _UNFINISHED.fullmatch(path.name):
                path.unlink(missing_ok=True)


def fault_of(path: Path) -> str | None:
    """Return what is wrong with a checkpoint file, in a few words; None if it is whole."""
    try:
        expected = _hash_path(path).read_text("utf-8").split()
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, UnicodeDecodeError) as error:
        return str(error)
    whole = bool(expected) and expected[0] == digest.hexdigest()
    return None if whole else "its hash does not match"


def _not_kept(directory: Path, step: int, kept: Kept) -> list[Path]:
    """Return the checkpoints up to ``step`` to drop, the oldest first."""
    earlier = {at: path for at, path in list_checkpoints(directory) if at <= step}
    # One that was never finished takes no place.
    finished = [at for at, _ in list_finished(directory) if at <= step]
    stay = set(finished[: kept.last])
    if kept.best:
        losses = {at: loss for at, loss in losses_of(directory).items() if at in earlier}
        stay.update(best_steps(losses, kept.best))
    return [earlier[at] for at in sorted(earlier) if at not in stay]


def _save(state: dict[str, Any], file: _HashedFile) -> None:
    """Write ``state``; torch answers a failed write with a RuntimeError, and loses the reason.

    Raises:
        OSError: the file can't be written.
    """
    try:
        torch.save(state, cast("IO[bytes]", file))
    except RuntimeError:
        if file.fault is not None:
            raise file.fault from None
        raise


def _write_hash(
    path: Path, digest: str, loss: float | None, permit: Callable[[], None] | None
) -> None:
    note = "" if loss is None else f"# validation loss {loss!r}\n"
    with replacing(_hash_path(path), permit) as file:
        file.write(f"{digest}  {path.name}\n{note}".encode())


def path_of(directory: Path, step: int) -> Path:
    """Return where the checkpoint after ``step`` steps lies, there or not."""
    return directory / f"step-{step:08d}.pt"


def _hash_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


class _HashedFile:
    """A file for torch.save that hashes what passes through, which saves reading it back."""

    def __init__(
        self, file: IO[bytes], digest: hashlib._Hash, permit: Callable[[], None] | None = None
    ) -> None:
        self._file, self._digest, self._permit = file, digest, permit
        self.fault: Exception | None = None
        """Why a write failed, which torch's writer does not say."""

    def write(self, data: bytes) -> int:
        try:
            if self._permit is not None:
                self._permit()
            self._digest.update(data)
            return self._file.write(data)
        except Exception as error:
            self.fault = error
            raise

    def flush(self) -> None:
        self._file.flush()
