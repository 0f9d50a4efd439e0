"""What can be imported from directories on Python's path beside the project.

Everything that can be imported from them counts, since nobody can tell what a task imports before
it does; what is installed does not.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from sweeps.planning import tasks
from sweeps.records import codefiles
from sweeps.records.codefiles import LARGE, NOT_CODE, is_code, is_large, is_result
from sweeps.records.projectfiles import source_files

PATH_DIR = ".path"
"""Holds, in the copy, what was found on Python's path beside the project."""


def name_of(place: Path) -> str:
    """Return what a directory of Python's path, so spelled, is called in a copy."""
    digest = hashlib.sha256(os.fsencode(place)).hexdigest()
    return f"{place.name}-{digest[:8]}"


def places(names: Iterable[str], root: Path) -> dict[Path, set[str]]:
    """Return the directories to import from beside the project; with the tasks' packages there.

    They are spelled as on Python's path, which jobs inherit: where links and automounters lead may
    differ between machines.
    """
    spelled: dict[Path, Path] = {}
    for entry in sys.path:
        spelled.setdefault(Path(entry).resolve(), Path(entry).absolute())
    found: dict[Path, set[str]] = {
        place: set()
        for resolved, place in spelled.items()
        if resolved != root and os.path.isdir(resolved) and not tasks.is_installed(resolved)
    }
    for origin in map(tasks.origin, names):
        if origin is not None and origin[0] != root:
            found.setdefault(spelled.get(origin[0], origin[0]), set()).add(origin[1])
    return found


def importable(
    place: Path, packages: Collection[str], results: Path, root: Path
) -> tuple[list[str], list[str]]:
    """Return the files of a directory that can be imported, with the data of packages.

    And, a line each, what is not among them: packages with a large file, those of tasks aside, and
    directories that cannot be read.

    Raises:
        TooLarge: there are too many files to look at.
        OSError: it cannot be read itself.
    """
    os.listdir(place)
    trees: dict[str, list[str]] = {}
    unreadable: list[OSError] = []
    for file in _code_files(place, packages, results, unreadable):
        trees.setdefault(file.partition("/")[0], []).append(file)
    found: list[str] = []
    whole = [f"{error.filename} is not frozen: {error.strerror}" for error in unreadable]
    for name, files in trees.items():
        if _is_hidden(place / name, root) or not any(is_code(place / file) for file in files):
            continue
        large = [file for file in files if is_large(place / file)]
        if large and name not in packages:
            whole.append(f"{place / name} is not frozen: {large[0]} is {LARGE}")
        else:
            found += files
    return found, whole


def _code_files(
    place: Path, packages: Collection[str], results: Path, unreadable: list[OSError]
) -> Iterator[str]:
    """Yield the files that lie where Python may import from.

    A directory with the name of one for results counts as a package of tasks only, or if it says
    that it is a package. One beside code that Python cannot import from is data: its name is
    yielded, as is that of one that cannot be read.

    Raises:
        TooLarge: there are too many to look at.
    """
    seen = 0
    for folder, folders, files in os.walk(place, onerror=unreadable.append):
        seen += len(folders) + len(files)
        codefiles.require_few(seen, codefiles.MAX_ENTRIES)
        here = "" if folder == str(place) else f"{os.path.relpath(folder, place)}/"
        is_package = bool(here) and "__init__.py" in files
        wanted = frozenset() if here else frozenset(packages)
        entered = [
            name
            for name in folders
            if name in wanted or _may_be_package(Path(folder, name), is_inside=is_package)
            if f"{folder}/{name}" != str(results)
        ]
        beside = [f for f in folders if f not in entered and is_beside(Path(folder, f), results)]
        folders[:] = entered
        links = [name for name in folders if os.path.islink(f"{folder}/{name}")]
        yield from (f"{here}{name}" for name in files + links + (beside if here else []))
    yield from (os.path.relpath(error.filename, place) for error in unreadable)


def _may_be_package(folder: Path, *, is_inside: bool) -> bool:
    """Say whether Python may import from a directory, or find data of a package in it.

    Args:
        folder: the directory.
        is_inside: whether it lies in a package.
    """
    name = folder.name
    if name in NOT_CODE and not os.path.isfile(folder / "__init__.py"):
        return False
    return name.isidentifier() or (is_inside and not name.startswith("."))


def _is_hidden(path: Path, root: Path) -> bool:
    """Say whether the project has code by the name of a file or directory beside it."""
    return (root / path.name / "__init__.py").exists() or (root / path.name).is_file()


def is_beside(path: Path, results: Path) -> bool:
    """Say whether a file or directory that is not copied may be data of code beside it."""
    is_ours = path == results or path.name in NOT_CODE or path.name.startswith(".")
    return not is_ours and not is_result(path)


def of_tasks(place: Path, packages: Iterable[str], results: Path) -> Iterator[str]:
    """Yield of a directory that is too large the packages of tasks and the modules beside them."""
    for package in packages:
        yield from (f"{package}/{file}" for file in source_files(place / package, results))
    yield from (name for name in entries(place) if packages and name.endswith(".py"))


def entries(folder: Path) -> list[str]:
    """Return the names in a directory; none if it cannot be read."""
    try:
        return os.listdir(folder)
    except OSError:
        return []
