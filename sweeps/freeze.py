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
from sweeps.provenance import PROJECT_ROOT

CODE_DIR = "code"

MAX_FILE_BYTES = 20_000_000
"""Larger files are data or results, not code, and stay where they are."""

_NOT_CODE = frozenset({".git", ".venv", "__pycache__", "build", "multirun", "outputs", "store"})


def freeze(home: Path, root: Path = PROJECT_ROOT) -> str:
    """Copy the project's code below ``home`` unless it is there already; return its hash.

    Copied are tracked files with their uncommitted changes, and untracked ones that git does not
    ignore. Outside git everything but results and environments.
    """
    files = sorted(_source_files(root))
    name = tree_hash(root, files)
    target = home / CODE_DIR / name
    if target.is_dir():
        return name
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(mkdtemp(dir=target.parent, prefix=".new-"))
    try:
        for file in files:
            (work / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / file, work / file, follow_symlinks=False)
        work.chmod(0o755)
        os.rename(work, target)
    except OSError:
        shutil.rmtree(work, ignore_errors=True)
        if not target.is_dir():  # another launch was first
            raise
    return name


def verify(frozen: Path) -> None:
    """Refuse to run from a copy whose content is not what its name says.

    Raises:
        OptsweepError: saying that the frozen code was changed.
    """
    found = tree_hash(frozen, sorted(_walked(frozen, skip=frozenset({"__pycache__"}))))
    if found != frozen.name:
        raise OptsweepError(
            f"the frozen code in {frozen} has changed since submission (it hashes to {found}); "
            "launch the sweep again to freeze the present code"
        )


def tree_hash(root: Path, files: list[str]) -> str:
    """Return 16 hex digits over the names and contents of files, links by their target."""
    digest = hashlib.sha256()
    for file in files:
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
