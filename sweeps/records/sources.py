"""Which files are frozen with a sweep: the project's, and what runs may import from elsewhere.

A link is followed where it leaves the tree that is copied: its target would change under the copy.
Nothing is copied by half: what stays where it is, is a link in the copy.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sweeps.records import projectfiles, pythonpath
from sweeps.records.codefiles import (
    LARGE,
    SUFFIXES,
    TooLarge,
    excess,
    has_code,
    is_large,
    is_result,
    require_small,
    size_of,
    small_tree,
)


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
            elif os.path.isdir(path) or is_large(path):
                self._leave(path, prefix + file)
            else:
                self.files[prefix + file] = path

    def _take(self, files: int, size: int) -> None:
        """Count files against the limits.

        Raises:
            TooLarge: they are too many with those before, and not counted.
        """
        taken = (self.taken[0] + files, self.taken[1] + size)
        reason = excess(*taken)
        if reason:
            raise TooLarge(f"{reason} with what is frozen already" if any(self.taken) else reason)
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
        if path.name.endswith(SUFFIXES):
            self.unfrozen.append(f"{path} is not frozen: {LARGE}")

    def _follow(self, link: Path, name: str, above: tuple[Path, ...]) -> None:
        """Add what a link leads to if that is code; else, or if it leads nowhere, the link."""
        target = Path(os.path.realpath(link))
        listed: list[str] = []
        try:
            if os.path.isfile(target):
                require_small(target)
                self._take(1, size_of(target))
                self.files[name] = target
                return
            os.stat(target)
            if not is_result(target) and not _encloses(target, above):
                listed = small_tree(target)
                self._take(len(listed), sum(size_of(target / file) for file in listed))
        except FileNotFoundError:
            pass
        except (TooLarge, OSError) as error:
            listed = []
            if isinstance(error, OSError) or has_code(target):
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
        prefix = f"{pythonpath.PATH_DIR}/{pythonpath.name_of(place)}/"
        here = place.resolve()
        if packages and projectfiles.git_files(here):
            listed = list(projectfiles.source_files(here, results))
            if {_module(file) for file in listed}.issuperset(packages):
                self.add(place, listed, prefix)
                return
        try:
            files, whole = pythonpath.importable(here, packages, results, root)
            small = [file for file in files if not is_large(here / file)]
            self._take(len(small), sum(size_of(here / file) for file in small))
        except (TooLarge, OSError) as error:
            files, whole = list(pythonpath.of_tasks(here, packages, results)), []
            what = "all that runs may import from it" if packages else "what runs import from it"
            reason = _why(error)
            self.unfrozen.append(f"{place} is on Python's path; {what} is not frozen: {reason}")
        self.unfrozen += whole
        self.add(place, files, prefix)
        copied = {file.partition("/")[0] for file in files}
        for name in pythonpath.entries(here) if files or whole else ():
            if name not in copied and pythonpath.is_beside(here / name, results):
                self.links[prefix + name] = place / name


def sources(names: Iterable[str], root: Path, home: Path) -> Sources:
    """Return what is to be frozen of the project and of Python's path at this moment.

    Args:
        names: dotted names of the tasks.
        root: the project.
        home: directory of the sweep's own files.
    """
    found = Sources(root)
    results = projectfiles.results_of(home)
    found.add(root, projectfiles.source_files(root, results))
    for place, packages in pythonpath.places(names, root).items():
        found.add_place(place, packages, results, root)
    return found


def _stays(base: Path, file: str, inside: Collection[str]) -> bool:
    """Say whether a link means in the copy, too, a file or directory of the copied tree."""
    text = os.readlink(base / file)
    target = os.path.normpath(os.path.join(os.path.dirname(file), text))
    is_named = not os.path.isabs(text) and target in inside
    return is_named and os.path.realpath(base / file) == os.path.realpath(base / target)


def _encloses(target: Path, above: Iterable[Path]) -> bool:
    return any(target == tree or target in tree.parents for tree in above)


def _why(error: OSError | TooLarge) -> str:
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)


def _module(file: str) -> str:
    return file.partition("/")[0].removesuffix(".py")
