"""A frozen, content-addressed copy of the code that a sweep was launched with.

The working tree may change while jobs wait; they run from the copy, and verify it first.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

from rundir import OptsweepError, UserError
from rundir.files import MULTIRUN, OUTPUTS
from sweeps.provenance import PROJECT_ROOT

CODE_DIR = "code"

MAX_FILE_BYTES = 20_000_000
"""Larger files are data or results, not code, and stay where they are."""

_NOT_CODE = frozenset({".git", ".venv", "__pycache__", "build", MULTIRUN, OUTPUTS, "store"})


def freeze(home: Path, root: Path = PROJECT_ROOT) -> str:
    """Copy the project's code below ``home`` unless it is there already; return its hash.

    Copied are tracked files with their uncommitted changes, and untracked ones that git does not
    ignore. Outside git everything but results and environments. The copy is hashed, not the
    source, which may be edited meanwhile; a damaged earlier copy is put aside.
    """
    folder = home / CODE_DIR
    folder.mkdir(parents=True, exist_ok=True)
    work = Path(mkdtemp(dir=folder, prefix=".new-"))
    try:
        for file in _source_files(root):
            (work / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / file, work / file, follow_symlinks=False)
        work.chmod(0o755)
        target = folder / tree_hash(work)
        if target.is_dir() and tree_hash(target) != target.name:
            target.rename(work.with_suffix(".damaged"))
        if not target.is_dir():
            work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target.name


def verify(frozen: Path) -> None:
    """Refuse to run from a copy whose content is not what its name says.

    Raises:
        OptsweepError: saying that the frozen code was changed.
    """
    found = tree_hash(frozen)
    if found != frozen.name:
        raise OptsweepError(
            f"the frozen code in {frozen} has changed since submission (it hashes to {found}); "
            "launch the sweep again to freeze the present code"
        )


def tree_hash(root: Path) -> str:
    """Return 16 hex digits over names and contents of all files below; of links, their target."""
    digest = hashlib.sha256()
    for file in sorted(_walked(root, skip=frozenset({"__pycache__"}))):
        path = root / file
        content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        digest.update(f"{file}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def _source_files(root: Path) -> Iterator[str]:
    listed = _git_files(root)
    for file in listed if listed is not None else _walked(root):
        path = root / file
        if path.is_symlink() or (path.is_file() and path.stat().st_size <= MAX_FILE_BYTES):
            yield file


def _git_files(root: Path) -> list[str] | None:
    command = [
        "git",
        "-C",
        str(root),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"git ls-files in {root} took over 60 s; is the file system well?"
        ) from None
    return (
        list(dict.fromkeys(os.fsdecode(done.stdout).split("\0")[:-1]))
        if done.returncode == 0
        else None
    )


def _walked(root: Path, skip: frozenset[str] = _NOT_CODE) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        folders[:] = [name for name in folders if name not in skip]
        for name in files + links:
            yield os.path.relpath(os.path.join(folder, name), root)
