"""A frozen, content-addressed copy of the code that a sweep was launched with.

The working tree may change while jobs wait; they run from the copy, and verify it first. What may
be imported from elsewhere on Python's path is copied too, unless it is installed.

    <home>/code/<hash>/               the project
    <home>/code/<hash>/.path/<name>/  another directory on Python's path
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from tempfile import mkdtemp

from rundir import OptsweepError
from rundir.files import SWEEP_DIR
from sweeps.records.codefiles import walked
from sweeps.records.provenance import PROJECT_ROOT
from sweeps.records.pythonpath import PATH_DIR, name_of
from sweeps.records.sources import Sources, sources

CODE_DIR = "code"


def freeze(
    home: Path,
    root: Path = PROJECT_ROOT,
    names: Iterable[str] = (),
    tell: Callable[[str], object] = lambda _: None,
) -> str:
    """Copy the code that runs use below ``home`` unless it is there already; return its hash.

    Copied are tracked files with their uncommitted changes, and untracked ones that git does not
    ignore, those of submodules too; outside git everything but results and environments. Of each
    other directory on Python's path, all that can be imported. The copy is hashed, not the source,
    which may be edited meanwhile; a damaged earlier copy is put aside.

    Args:
        home: directory of the sweep's own files.
        root: the project.
        names: dotted names of the tasks.
        tell: hears of each thing that is not frozen though runs may import it.
    """
    found = _sources(names, root, home)
    copy = store(found, home / CODE_DIR)
    for line in found.unfrozen:
        tell(line)
    return copy.name


def store(found: Sources, folder: Path) -> Path:
    """Copy files below a folder unless they are there already; return the copy, named by its hash.

    What outside the project cannot be read by then is left out of the files.

    Raises:
        OptsweepError: a file can't be copied, as onto a full disk.
    """
    present = folder / content_hash(found)
    if present.is_dir() and tree_hash(present) == present.name:
        return present
    folder.mkdir(parents=True, exist_ok=True)
    work = Path(mkdtemp(dir=folder, prefix=".new-"))
    try:
        for file, source in list(found.files.items()):
            (work / file).parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copy2(source, work / file, follow_symlinks=False)
            except (FileNotFoundError, PermissionError) as error:
                (work / file).unlink(missing_ok=True)
                found.leave(file, error)
            except OSError as error:  # whose file is the source, though the copy has no room
                raise OptsweepError(
                    f"{source} can't be copied into {folder}: {error.strerror}"
                ) from None
        for name, target in found.links.items():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).symlink_to(target)
        work.chmod(0o755)
        target = folder / tree_hash(work)
        if target.is_dir() and tree_hash(target) != target.name:
            target.rename(work.with_suffix(".damaged"))
        if not target.is_dir():
            work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def is_copy(root: Path) -> bool:
    """Say whether a directory is a frozen copy, in which code that runs from it finds itself."""
    return root.parent.name == CODE_DIR and root.parent.parent.name == SWEEP_DIR


def import_from(frozen: Path) -> None:
    """Put what a copy holds of Python's path on that of this process, ahead of the originals.

    An original is known by its spelling there, or by what that leads to here. One that is not on it
    here comes last, as the launch directory does at the launch.
    """
    for copy in sorted((frozen / PATH_DIR).glob("*")):
        entries = [Path(entry) for entry in sys.path]
        known = [{name_of(entry.absolute()), name_of(entry.resolve())} for entry in entries]
        places = [index for index, names in enumerate(known) if copy.name in names]
        sys.path.insert(min(places, default=len(known)), os.fspath(copy))


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
    return _hash(frozen_contents(root))


def present_hash(
    home: Path,
    root: Path = PROJECT_ROOT,
    names: Iterable[str] = (),
    tell: Callable[[str], object] = lambda _: None,
) -> str:
    """Return what :func:`freeze` would call a copy made at this moment. Writes nothing."""
    found = _sources(names, root, home)
    name = content_hash(found)
    for line in found.unfrozen:
        tell(line)
    return name


def content_hash(found: Sources) -> str:
    """Return what :func:`store` would call a copy of these files."""
    return _hash(_contents(found))


def _hash(contents: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for file, content in sorted(contents.items()):
        digest.update(os.fsencode(f"{file}\0{content}\n"))
    return digest.hexdigest()[:16]


def frozen_contents(frozen: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a copy, by its name there."""
    return {file: _sha256(frozen / file) for file in walked(frozen, frozenset({"__pycache__"}))}


def present_contents(names: Iterable[str], home: Path) -> dict[str, str]:
    """Return the same of the files that :func:`freeze` would copy at this moment."""
    return _contents(_sources(names, PROJECT_ROOT, home))


def _contents(found: Sources) -> dict[str, str]:
    """Return the digests, and leave what cannot be read out of the files."""
    contents = {}
    for file, source in list(found.files.items()):
        try:
            contents[file] = _sha256(source)
        except OSError as error:
            found.leave(file, error)
    links = {name: _digest(os.fsencode(target)) for name, target in found.links.items()}
    return contents | links


def _sources(names: Iterable[str], root: Path, home: Path) -> Sources:
    """Return what to freeze: of a copy that is launched from all of it, and nothing else."""
    if is_copy(root):
        return Sources(root, {file: root / file for file in frozen_contents(root)})
    return sources(names, root, home)


def _sha256(path: Path) -> str:
    return _digest(os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
