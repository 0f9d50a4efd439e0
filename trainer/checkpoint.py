"""Checkpoints that survive being interrupted: whole files only, hash checked, older ones kept.

``checkpoints/step-00000500.pt`` replaces nothing until it is whole and on the disk;
``checkpoints/step-00000500.pt.sha256`` follows, in the format of sha256sum.
"""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path
from typing import IO, Any, cast

import torch

from rundir.files import replacing

log = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{8,})\.pt")


def save_checkpoint(directory: Path, step: int, state: dict[str, Any], keep_last: int) -> Path:
    """Write ``state`` for ``step`` in one atomic, durable step, then drop the oldest ones.

    Args:
        directory: created if needed.
        step: optimizer steps done.
        state: tensors, numbers, texts and containers of those; nothing that needs pickled code.
        keep_last: checkpoints to keep, this one included.

    Raises:
        OSError: the file can't be written; the earlier checkpoints are untouched.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"step-{step:08d}.pt"
    digest = hashlib.sha256()
    with replacing(path) as file:
        _save(state, _HashedFile(file, digest))
    with replacing(_hash_path(path)) as file:
        file.write(f"{digest.hexdigest()}  {path.name}\n".encode())
    earlier = [(at, old) for at, old in list_checkpoints(directory) if at <= step]
    for _, old in earlier[keep_last:]:
        old.unlink(missing_ok=True)
        _hash_path(old).unlink(missing_ok=True)
    return path


def newest_checkpoint(directory: Path) -> Path | None:
    """Return the newest whole checkpoint, having read it once; None if there is none.

    A damaged one is named in the log and passed over for the one before it.
    """
    for _, path in list_checkpoints(directory):
        fault = _fault(path)
        if fault is None:
            return path
        log.warning("checkpoint %s is not usable (%s); looking for an older one", path.name, fault)
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state in a whole checkpoint, its tensors on the CPU."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def list_checkpoints(directory: Path) -> list[tuple[int, Path]]:
    """Return (step, path) of the checkpoint files, newest first, damaged ones too."""
    if not directory.is_dir():
        return []
    named = ((_NAME.fullmatch(path.name), path) for path in directory.iterdir())
    return sorted(((int(name[1]), path) for name, path in named if name), reverse=True)


def _save(state: dict[str, Any], file: _HashedFile) -> None:
    """Write ``state``; torch answers a failed write with a RuntimeError, which becomes an OSError.

    Raises:
        OSError: the file can't be written.
    """
    try:
        torch.save(state, cast("IO[bytes]", file))
    except RuntimeError:
        if file.fault is not None:
            raise file.fault from None
        raise


def _fault(path: Path) -> str | None:
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


def _hash_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


class _HashedFile:
    """A file for torch.save that hashes what passes through, which saves reading it back."""

    def __init__(self, file: IO[bytes], digest: hashlib._Hash) -> None:
        self._file, self._digest = file, digest
        self.fault: OSError | None = None
        """Why a write failed, which torch's writer does not say."""

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.fault = error
            raise

    def flush(self) -> None:
        self._file.flush()
