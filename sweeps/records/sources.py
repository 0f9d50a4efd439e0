"""Which files are frozen with a sweep: the project's, and what runs may import from elsewhere.

Of a directory on Python's path that is neither the project nor installed, everything that can be
imported counts, since nobody can tell what a task imports before it does. A link is followed where
it leaves the tree that is copied: its target would change under the copy.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES
from pathlib import Path

from rundir import UserError
from rundir.files import HYDRA_DIR, MULTIRUN, OUTPUTS, SWEEP_DIR
from sweeps.planning import tasks

PATH_DIR = ".path"
"""Holds, in the copy, what was found on Python's path beside the project."""

MAX_FILE_BYTES = 20_000_000
"""Larger files are data or results, not code, and stay where they are."""

MAX_FILES, MAX_BYTES, MAX_ENTRIES = 2000, 50_000_000, 10_000
"""The most files and bytes that are frozen of a directory beside the project, and the most entries
that are looked at there: a sweep may be launched from a home directory."""

_NOT_CODE = frozenset({".git", ".venv", "__pycache__", "build", MULTIRUN, OUTPUTS, "store"})

_SUFFIXES = (*SOURCE_SUFFIXES, *EXTENSION_SUFFIXES)


class _TooLarge(Exception):
    """More than is frozen of a directory."""

    def __init__(self, reason: str, *, has_code: bool = True) -> None:
        super().__init__(reason)
        self.has_code = has_code


@dataclass
class Sources:
    """Files to freeze."""

    files: dict[str, Path] = field(default_factory=dict)
    """Where each file lies, by its name in the copy; a link only where the copy keeps it one."""
    unfrozen: list[str] = field(default_factory=list)
    """What may be imported and is not among them, and why, a line each."""

    def add(
        self, base: Path, files: Iterable[str], prefix: str = "", above: tuple[Path, ...] = ()
    ) -> None:
        """Add files of a tree, and in place of links that leave it what they lead to.

        Args:
            base: root of the tree.
            files: names below it.
            prefix: of their names in the copy.
            above: the trees whose links led here.
        """
        listed = list(files)
        inside = {*listed, *(str(parent) for file in listed for parent in Path(file).parents)}
        for file in listed:
            path = base / file
            if not path.is_symlink() or _stays(base, file, inside):
                self.files[prefix + file] = path
            else:
                self._follow(path, prefix + file, above or (base.resolve(),))

    def _follow(self, link: Path, name: str, above: tuple[Path, ...]) -> None:
        """Add what a link leads to if that is code; else, or if it leads nowhere, the link."""
        target = Path(os.path.realpath(link))
        if target.is_file() and target.stat().st_size <= MAX_FILE_BYTES:
            self.files[name] = target
        elif target.is_dir() and not _is_result(target) and not _encloses(target, above):
            try:
                self.add(target, _small_tree(target), f"{name}/", (*above, target))
            except _TooLarge as error:
                self.files[name] = link
                if error.has_code:
                    self.unfrozen.append(f"{link}, a link to {target}, is not frozen: {error}")
        else:
            self.files[name] = link


def sources(names: Iterable[str], root: Path, home: Path) -> Sources:
    """Return what is to be frozen of the project and of Python's path at this moment.

    Args:
        names: dotted names of the tasks.
        root: the project.
        home: directory of the sweep's own files.
    """
    found = Sources()
    results = _results(home)
    found.add(root, _source_files(root, results))
    for place, packages in _places(names, root).items():
        files: Iterable[str] = ()
        try:
            files = _importable(place, packages, results, root)
        except _TooLarge as error:
            files = _beside(place, packages, results)
            what = "all that runs may import from it" if packages else "what runs import from it"
            found.unfrozen.append(f"{place} is on Python's path; {what} is not frozen: {error}")
        found.add(place, files, f"{PATH_DIR}/{name_of(place)}/")
    return found


def name_of(place: Path) -> str:
    """Return what a directory of Python's path is called in a copy, the same in every process."""
    digest = hashlib.sha256(os.fsencode(place)).hexdigest()
    return f"{place.name}-{digest[:8]}"


def walked(root: Path, skip: frozenset[str] = _NOT_CODE) -> Iterator[str]:
    """Yield the names of all files and links below a directory."""
    for folder, folders, files in os.walk(root):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        folders[:] = [name for name in folders if name not in skip]
        for name in files + links:
            yield os.path.relpath(os.path.join(folder, name), root)


def _stays(base: Path, file: str, inside: Collection[str]) -> bool:
    """Say whether a link means in the copy, too, a file or directory of the copied tree."""
    text = os.readlink(base / file)
    target = os.path.normpath(os.path.join(os.path.dirname(file), text))
    is_named = not os.path.isabs(text) and target in inside
    return is_named and os.path.realpath(base / file) == os.path.realpath(base / target)


def _is_result(target: Path) -> bool:
    """Say whether a directory holds what runs or environments wrote, not code."""
    return target.name in _NOT_CODE or any((target / d).is_dir() for d in (SWEEP_DIR, HYDRA_DIR))


def _encloses(target: Path, above: Iterable[Path]) -> bool:
    return any(target == tree or target in tree.parents for tree in above)


def _small_tree(top: Path) -> list[str]:
    """Return the files of a directory that a link leads to.

    Raises:
        _TooLarge: it looks like data, or is more code than is frozen.
    """
    found: list[str] = []
    size = 0
    for name in walked(top, _NOT_CODE | {SWEEP_DIR}):
        length = os.lstat(top / name).st_size
        if length <= MAX_FILE_BYTES:
            found.append(name)
            size += length
        reason = _excess(len(found), size)
        if reason:
            raise _TooLarge(reason, has_code=any(file.endswith(_SUFFIXES) for file in found))
    return found


def _excess(files: int, size: int) -> str | None:
    if files > MAX_FILES:
        return f"over {MAX_FILES} files"
    return f"over {MAX_BYTES // 1_000_000} MB" if size > MAX_BYTES else None


def _places(names: Iterable[str], root: Path) -> dict[Path, set[str]]:
    """Return the directories to import from beside the project; with the tasks' packages there."""
    places = dict.fromkeys(Path(entry).resolve() for entry in sys.path)
    found: dict[Path, set[str]] = {
        place: set()
        for place in places
        if place != root and place.is_dir() and not tasks.is_installed(place)
    }
    for origin in map(tasks.origin, names):
        if origin is not None and origin[0] != root:
            found.setdefault(origin[0], set()).add(origin[1])
    return found


def _importable(place: Path, packages: Collection[str], results: Path, root: Path) -> list[str]:
    """Return the files of a directory that can be imported, with the data of packages.

    Of a task's git tree, what git tracks or would track. What the project has by the same name is
    found there first.

    Raises:
        _TooLarge: there is more than is frozen.
    """
    listed = list(_source_files(place, results)) if packages and _git_files(place) else []
    first = {file.partition("/")[0].removesuffix(".py") for file in listed}
    if packages and first.issuperset(packages):
        return listed
    files = list(_code_files(place, packages, results))
    with_code = {file.partition("/")[0] for file in files if file.endswith(_SUFFIXES)}
    hidden = {f for f in with_code if (root / f / "__init__.py").exists() or (root / f).is_file()}
    found = [file for file in files if file.partition("/")[0] in with_code - hidden]
    reason = _excess(len(found), sum(os.lstat(place / file).st_size for file in found))
    if reason:
        raise _TooLarge(reason)
    return found


def _code_files(place: Path, packages: Collection[str], results: Path) -> Iterator[str]:
    """Yield the files that lie where Python may import from.

    A directory with the name of one for results counts as a package of tasks only, or if it says
    that it is a package.

    Raises:
        _TooLarge: there are too many to look at.
    """
    seen = 0
    for folder, folders, files in os.walk(place):
        seen += len(folders) + len(files)
        if seen > MAX_ENTRIES:
            raise _TooLarge(f"over {MAX_ENTRIES} files and directories")
        here = "" if folder == str(place) else f"{os.path.relpath(folder, place)}/"
        is_package = bool(here) and "__init__.py" in files
        wanted = frozenset() if here else frozenset(packages)
        folders[:] = [
            name
            for name in folders
            if name in wanted or _may_be_package(Path(folder, name), is_inside=is_package)
            if f"{folder}/{name}" != str(results)
        ]
        links = [name for name in folders if os.path.islink(f"{folder}/{name}")]
        for name in files + links:
            if os.lstat(f"{folder}/{name}").st_size <= MAX_FILE_BYTES:
                yield f"{here}{name}"


def _may_be_package(folder: Path, *, is_inside: bool) -> bool:
    """Say whether Python may import from a directory, or find data of a package in it.

    Args:
        folder: the directory.
        is_inside: whether it lies in a package.
    """
    name = folder.name
    if name in _NOT_CODE and not (folder / "__init__.py").is_file():
        return False
    return name.isidentifier() or (is_inside and not name.startswith("."))


def _beside(place: Path, packages: Iterable[str], results: Path) -> Iterator[str]:
    """Yield of a directory that is too large the packages of tasks and the modules beside them."""
    for package in packages:
        yield from (f"{package}/{file}" for file in _source_files(place / package, results))
    yield from (path.name for path in place.glob("*.py") if packages)


def _results(home: Path) -> Path:
    """Return the directory of the sweeps, whose files are not code even where git sees them."""
    sweep = home.resolve().parent
    return sweep if sweep.parent == Path.cwd() else sweep.parent


def _source_files(root: Path, results: Path) -> Iterator[str]:
    listed = _git_files(root)
    inside = f"{results.relative_to(root)}/" if root in results.parents else None
    for file in listed if listed is not None else walked(root):
        path = root / file
        if file.partition("/")[0] in _NOT_CODE or "__pycache__" in path.parts:
            continue
        if inside and file.startswith(inside):
            continue
        if path.is_symlink() or (path.is_file() and path.stat().st_size <= MAX_FILE_BYTES):
            yield file
        elif (path / ".git").exists():  # a submodule, or a repository of its own
            inner = _source_files(path, results)
            yield from (os.path.join(file, name) for name in inner)


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
