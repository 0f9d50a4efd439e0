"""Which files are frozen with a sweep: the project's, and what runs may import from elsewhere.

Of a directory on Python's path that is neither the project nor installed, everything that can be
imported counts, since nobody can tell what a task imports before it does. A link is followed where
it leaves the tree that is copied: its target would change under the copy. Nothing is copied by
half: what stays where it is, is a link in the copy.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES
from itertools import chain
from pathlib import Path

from rundir import UserError
from rundir.files import HYDRA_DIR, MULTIRUN, OUTPUTS, SWEEP_DIR
from sweeps.planning import tasks

PATH_DIR = ".path"
"""Holds, in the copy, what was found on Python's path beside the project."""

MAX_FILE_BYTES = 20_000_000
"""Larger files are data or results, not code, and stay where they are."""

MAX_FILES, MAX_BYTES, MAX_ENTRIES = 2000, 50_000_000, 10_000
"""The most files and bytes that are frozen beside the project, tasks' own packages aside: each job
reads them. And the most entries that are looked at of a directory there: a sweep may be launched
from a home directory."""

_NOT_CODE = frozenset({".git", ".venv", "__pycache__", "build", MULTIRUN, OUTPUTS, "store"})

_LARGE = f"over {MAX_FILE_BYTES // 1_000_000} MB"

_SUFFIXES = (*SOURCE_SUFFIXES, *EXTENSION_SUFFIXES)


class _TooLarge(Exception):
    """More than is frozen of a directory."""


@dataclass
class Sources:
    """Files to freeze."""

    root: Path
    """The project: what cannot be read there is an error, elsewhere a line of ``unfrozen``."""
    files: dict[str, Path] = field(default_factory=dict)
    """Where each file lies, by its name in the copy; a link only where the copy keeps it one."""
    links: dict[str, Path] = field(default_factory=dict)
    """What stays where it is and is a link in the copy, by its name there."""
    unfrozen: list[str] = field(default_factory=list)
    """What may be imported and is not among the files, and why, a line each."""
    taken: tuple[int, int] = (0, 0)
    """Of the files, how many and how many bytes count against the limits."""

    def add(
        self, base: Path, files: Iterable[str], prefix: str = "", above: tuple[Path, ...] = ()
    ) -> None:
        """Add files of a tree, and in place of links that leave it what they lead to.

        Large files, and directories, stay where they are.

        Args:
            base: root of the tree, absolute.
            files: names below it.
            prefix: of their names in the copy.
            above: the trees whose links led here.
        """
        listed = list(files)
        inside = {*listed, *(str(parent) for file in listed for parent in Path(file).parents)}
        for file in listed:
            path = base / file
            if os.path.islink(path):
                if _stays(base, file, inside):
                    self.files[prefix + file] = path
                else:
                    self._follow(path, prefix + file, above or (base.resolve(),))
            elif os.path.isdir(path) or _is_large(path):
                self._leave(path, prefix + file)
            else:
                self.files[prefix + file] = path

    def _take(self, files: int, size: int) -> None:
        """Count files against the limits.

        Raises:
            _TooLarge: they are too many with those before, and not counted.
        """
        taken = (self.taken[0] + files, self.taken[1] + size)
        reason = _excess(*taken)
        if reason:
            raise _TooLarge(f"{reason} with what is frozen already" if any(self.taken) else reason)
        self.taken = taken

    def leave(self, name: str, error: OSError) -> None:
        """Replace a file that cannot be read, or is gone, by a link to it.

        Raises:
            OSError: the same; it lies in the project.
        """
        path = self.files[name]
        if self.root in path.parents:
            raise error
        self.links[name] = self.files.pop(name)
        self.unfrozen.append(f"{path} is not frozen: {error.strerror}")

    def _leave(self, path: Path, name: str) -> None:
        """Add a link to a file or directory, and say so of code."""
        self.links[name] = path
        if path.name.endswith(_SUFFIXES):
            self.unfrozen.append(f"{path} is not frozen: {_LARGE}")

    def _follow(self, link: Path, name: str, above: tuple[Path, ...]) -> None:
        """Add what a link leads to if that is code; else, or if it leads nowhere, the link."""
        target = Path(os.path.realpath(link))
        listed: list[str] = []
        try:
            if os.path.isfile(target):
                _require_small(target)
                self._take(1, _size(target))
                self.files[name] = target
                return
            os.stat(target)
            if not _is_result(target) and not _encloses(target, above):
                listed = _small_tree(target)
                self._take(len(listed), sum(_size(target / file) for file in listed))
        except FileNotFoundError:
            pass
        except (_TooLarge, OSError) as error:
            listed = []
            if isinstance(error, OSError) or _has_code(target):
                self.unfrozen.append(f"{link}, a link to {target}, is not frozen: {_why(error)}")
        if listed:
            self.add(target, listed, f"{name}/", (*above, target))
        else:
            self._keep(link, name)

    def _keep(self, link: Path, name: str) -> None:
        """Add a link that leads from the copy where it leads from here."""
        self.links[name] = link.parent / os.readlink(link)

    def add_place(self, place: Path, packages: Collection[str], results: Path, root: Path) -> None:
        """Add what can be imported from a directory of Python's path, and links to what is beside.

        A package with a large file stays whole where it is: half of it would hide the other half.

        Args:
            place: the directory, spelled as on Python's path.
            packages: of tasks that lie there.
            results: directory of the sweeps.
            root: the project; what it has by the same name is found there first.
        """
        prefix = f"{PATH_DIR}/{name_of(place)}/"
        here = place.resolve()
        if packages and _git_files(here):
            listed = list(_source_files(here, results))
            if {_module(file) for file in listed}.issuperset(packages):
                self.add(place, listed, prefix)
                return
        try:
            files, whole = _importable(here, packages, results, root)
            small = [file for file in files if not _is_large(here / file)]
            self._take(len(small), sum(_size(here / file) for file in small))
        except (_TooLarge, OSError) as error:
            files, whole = list(_beside(here, packages, results)), []
            what = "all that runs may import from it" if packages else "what runs import from it"
            reason = _why(error)
            self.unfrozen.append(f"{place} is on Python's path; {what} is not frozen: {reason}")
        self.unfrozen += whole
        self.add(place, files, prefix)
        copied = {file.partition("/")[0] for file in files}
        for name in _listed(here) if files or whole else ():
            if name not in copied and _is_beside(here / name, results):
                self.links[prefix + name] = place / name


def sources(names: Iterable[str], root: Path, home: Path) -> Sources:
    """Return what is to be frozen of the project and of Python's path at this moment.

    Args:
        names: dotted names of the tasks.
        root: the project.
        home: directory of the sweep's own files.
    """
    found = Sources(root)
    results = _results(home)
    found.add(root, _source_files(root, results))
    for place, packages in _places(names, root).items():
        found.add_place(place, packages, results, root)
    return found


def name_of(place: Path) -> str:
    """Return what a directory of Python's path, so spelled, is called in a copy."""
    digest = hashlib.sha256(os.fsencode(place)).hexdigest()
    return f"{place.name}-{digest[:8]}"


def walked(
    root: Path,
    skip: frozenset[str] = _NOT_CODE,
    on_error: Callable[[OSError], object] | None = None,
    most: int | None = None,
) -> Iterator[str]:
    """Yield the names of all files and links below a directory.

    Raises:
        _TooLarge: there are more than ``most`` entries to look at.
    """
    seen = 0
    for folder, folders, files in os.walk(root, onerror=on_error):
        seen += len(folders) + len(files)
        if most is not None and seen > most:
            raise _TooLarge(f"over {most} files and directories")
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
    return target.name in _NOT_CODE or any(
        os.path.isdir(target / name) for name in (SWEEP_DIR, HYDRA_DIR)
    )


def _encloses(target: Path, above: Iterable[Path]) -> bool:
    return any(target == tree or target in tree.parents for tree in above)


def _why(error: OSError | _TooLarge) -> str:
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)


def _refuse(error: OSError) -> None:
    raise error


def _size(path: Path) -> int:
    """Return the bytes of a file or link; 0 if it cannot be asked, as reading it will tell."""
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


def _is_large(path: Path) -> bool:
    return _size(path) > MAX_FILE_BYTES


def _require_small(file: Path) -> None:
    if _is_large(file):
        raise _TooLarge(_LARGE)


def _has_code(top: Path) -> bool:
    """Say whether a file is code or a directory holds some, as far as one looks there."""
    with suppress(_TooLarge):
        names = chain([top.name], walked(top, most=MAX_ENTRIES))
        return any(name.endswith(_SUFFIXES) for name in names)
    return False


def _is_code(path: Path) -> bool:
    """Say whether a file is code, or a link leads to a directory of some."""
    target = Path(os.path.realpath(path))
    is_link = path.is_symlink() and not _is_result(target)
    return path.name.endswith(_SUFFIXES) or (is_link and _has_code(target))


def _small_tree(top: Path) -> list[str]:
    """Return the files of a directory that a link leads to.

    Raises:
        _TooLarge: it looks like data, or is more code than is frozen.
        OSError: a directory cannot be read.
    """
    found: list[str] = []
    size = 0
    for name in walked(top, _NOT_CODE | {SWEEP_DIR}, _refuse, MAX_ENTRIES):
        found.append(name)
        size += _size(top / name)
        reason = f"{name} is {_LARGE}" if _is_large(top / name) else _excess(len(found), size)
        if reason:
            raise _TooLarge(reason)
    return found


def _excess(files: int, size: int) -> str | None:
    if files > MAX_FILES:
        return f"over {MAX_FILES} files"
    return f"over {MAX_BYTES // 1_000_000} MB" if size > MAX_BYTES else None


def _places(names: Iterable[str], root: Path) -> dict[Path, set[str]]:
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


def _importable(
    place: Path, packages: Collection[str], results: Path, root: Path
) -> tuple[list[str], list[str]]:
    """Return the files of a directory that can be imported, with the data of packages.

    And, a line each, what is not among them: packages with a large file, those of tasks aside, and
    directories that cannot be read.

    Raises:
        _TooLarge: there are too many files to look at.
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
        if _is_hidden(place / name, root) or not any(_is_code(place / file) for file in files):
            continue
        large = [file for file in files if _is_large(place / file)]
        if large and name not in packages:
            whole.append(f"{place / name} is not frozen: {large[0]} is {_LARGE}")
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
        _TooLarge: there are too many to look at.
    """
    seen = 0
    for folder, folders, files in os.walk(place, onerror=unreadable.append):
        seen += len(folders) + len(files)
        if seen > MAX_ENTRIES:
            raise _TooLarge(f"over {MAX_ENTRIES} files and directories")
        here = "" if folder == str(place) else f"{os.path.relpath(folder, place)}/"
        is_package = bool(here) and "__init__.py" in files
        wanted = frozenset() if here else frozenset(packages)
        entered = [
            name
            for name in folders
            if name in wanted or _may_be_package(Path(folder, name), is_inside=is_package)
            if f"{folder}/{name}" != str(results)
        ]
        beside = [f for f in folders if f not in entered and _is_beside(Path(folder, f), results)]
        folders[:] = entered
        links = [name for name in folders if os.path.islink(f"{folder}/{name}")]
        yield from (f"{here}{name}" for name in files + links + (beside if here else []))
    yield from (os.path.relpath(error.filename, place) for error in unreadable)


def _module(file: str) -> str:
    return file.partition("/")[0].removesuffix(".py")


def _is_hidden(path: Path, root: Path) -> bool:
    """Say whether the project has code by the name of a file or directory beside it."""
    return (root / path.name / "__init__.py").exists() or (root / path.name).is_file()


def _is_beside(path: Path, results: Path) -> bool:
    """Say whether a file or directory that is not copied may be data of code beside it."""
    is_ours = path == results or path.name in _NOT_CODE or path.name.startswith(".")
    return not is_ours and not _is_result(path)


def _may_be_package(folder: Path, *, is_inside: bool) -> bool:
    """Say whether Python may import from a directory, or find data of a package in it.

    Args:
        folder: the directory.
        is_inside: whether it lies in a package.
    """
    name = folder.name
    if name in _NOT_CODE and not os.path.isfile(folder / "__init__.py"):
        return False
    return name.isidentifier() or (is_inside and not name.startswith("."))


def _beside(place: Path, packages: Iterable[str], results: Path) -> Iterator[str]:
    """Yield of a directory that is too large the packages of tasks and the modules beside them."""
    for package in packages:
        yield from (f"{package}/{file}" for file in _source_files(place / package, results))
    yield from (name for name in _listed(place) if packages and name.endswith(".py"))


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


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
        if path.is_symlink() or path.is_file():
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
