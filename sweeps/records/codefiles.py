"""What of a tree is code, and how much of it is frozen."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES
from itertools import chain
from pathlib import Path

from rundir.files import HYDRA_DIR, MULTIRUN, OUTPUTS, SWEEP_DIR

MAX_FILE_BYTES = 20_000_000
"""Larger files are data or results, not code, and stay where they are."""

MAX_FILES, MAX_BYTES, MAX_ENTRIES = 2000, 50_000_000, 10_000
"""The most files and bytes that are frozen beside the project, tasks' own packages aside: each job
reads them. And the most entries that are looked at of a directory there: a sweep may be launched
from a home directory."""

NOT_CODE = frozenset({".git", ".venv", "__pycache__", "build", MULTIRUN, OUTPUTS, "store"})
"""Names of directories that hold what git, Python, builds and runs wrote."""

LARGE = f"over {MAX_FILE_BYTES // 1_000_000} MB"

SUFFIXES = (*SOURCE_SUFFIXES, *EXTENSION_SUFFIXES)


class TooLarge(Exception):
    """More than is frozen of a directory."""


def excess(files: int, size: int) -> str | None:
    """Say which limit so many files, of so many bytes, are over; None: neither."""
    if files > MAX_FILES:
        return f"over {MAX_FILES} files"
    return f"over {MAX_BYTES // 1_000_000} MB" if size > MAX_BYTES else None


def size_of(path: Path) -> int:
    """Return the bytes of a file or link; 0 if it cannot be asked, as reading it will tell."""
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


def is_large(path: Path) -> bool:
    """Say whether a file is too large to be frozen."""
    return size_of(path) > MAX_FILE_BYTES


def require_small(file: Path) -> None:
    """Refuse a file that is too large to be frozen.

    Raises:
        TooLarge: it is.
    """
    if is_large(file):
        raise TooLarge(LARGE)


def require_few(entries: int, most: int) -> None:
    """Refuse to look at more entries of a directory than ``most``.

    Raises:
        TooLarge: there are more.
    """
    if entries > most:
        raise TooLarge(f"over {most} files and directories")


def is_result(target: Path) -> bool:
    """Say whether a directory holds what runs or environments wrote, not code."""
    return target.name in NOT_CODE or has_runs(target)


def has_runs(target: Path) -> bool:
    """Say whether a directory is a sweep's or a run's, whatever its name."""
    return any(os.path.isdir(target / name) for name in (SWEEP_DIR, HYDRA_DIR))


def is_code(path: Path) -> bool:
    """Say whether a file is code, or a link leads to a directory of some."""
    target = Path(os.path.realpath(path))
    is_link = path.is_symlink() and not is_result(target)
    return path.name.endswith(SUFFIXES) or (is_link and has_code(target))


def has_code(top: Path) -> bool:
    """Say whether a file is code or a directory holds some, as far as one looks there."""
    with suppress(TooLarge):
        names = chain([top.name], walked(top, most=MAX_ENTRIES))
        return any(name.endswith(SUFFIXES) for name in names)
    return False


def small_tree(top: Path) -> list[str]:
    """Return the files of a directory that a link leads to.

    Raises:
        TooLarge: it looks like data, or is more code than is frozen.
        OSError: a directory cannot be read.
    """
    found: list[str] = []
    size = 0
    for name in walked(top, NOT_CODE | {SWEEP_DIR}, _refuse, MAX_ENTRIES):
        found.append(name)
        size += size_of(top / name)
        reason = f"{name} is {LARGE}" if is_large(top / name) else excess(len(found), size)
        if reason:
            raise TooLarge(reason)
    return found


def walked(
    root: Path,
    skip: frozenset[str] = NOT_CODE,
    on_error: Callable[[OSError], object] | None = None,
    most: int | None = None,
) -> Iterator[str]:
    """Yield the names of all files and links below a directory.

    Raises:
        TooLarge: there are more than ``most`` entries to look at.
    """
    seen = 0
    for folder, folders, files in os.walk(root, onerror=on_error):
        seen += len(folders) + len(files)
        if most is not None:
            require_few(seen, most)
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        folders[:] = [name for name in folders if name not in skip]
        for name in files + links:
            yield os.path.relpath(os.path.join(folder, name), root)


def _refuse(error: OSError) -> None:
    raise error
