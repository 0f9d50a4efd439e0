"""A frozen, content-addressed copy of the code that a sweep was launched with.

The working tree may change while jobs wait; they run from the copy, and verify it first. A task
that lies elsewhere than in the project is copied too, with what it may import from beside it.

    <home>/code/<hash>/             the project
    <home>/code/<hash>/.tasks/<n>/  the directory that a task is imported from
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import mkdtemp

from rundir import OptsweepError, UserError
from rundir.files import MULTIRUN, OUTPUTS, SWEEP_DIR
from sweeps.planning import tasks
from sweeps.records.provenance import PROJECT_ROOT

CODE_DIR = "code"

TASKS_DIR = ".tasks"
"""Holds, in the copy, the directories that tasks outside the project are imported from."""

MAX_FILE_BYTES = 20_000_000
"""Larger files are data or results, not code, and stay where they are."""

_NOT_CODE = frozenset({".git", ".venv", "__pycache__", "build", MULTIRUN, OUTPUTS, "store"})


def freeze(home: Path, root: Path = PROJECT_ROOT, names: Iterable[str] = ()) -> str:
    """Copy the code that runs use below ``home`` unless it is there already; return its hash.

    Copied are tracked files with their uncommitted changes, and untracked ones that git does not
    ignore, those of submodules too. Outside git everything but results and environments; of a
    task's directory outside git the task's package and the modules beside it. The copy is hashed,
    not the source, which may be edited meanwhile; a damaged earlier copy is put aside.

    Args:
        home: directory of the sweep's own files.
        root: the project.
        names: dotted names of the tasks.
    """
    folder = home / CODE_DIR
    present = folder / present_hash(home, root, names)
    if present.is_dir() and tree_hash(present) == present.name:
        return present.name
    folder.mkdir(parents=True, exist_ok=True)
    work = Path(mkdtemp(dir=folder, prefix=".new-"))
    try:
        for source, file in _sources(names, root, home):
            (work / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, work / file, follow_symlinks=False)
        work.chmod(0o755)
        target = folder / tree_hash(work)
        if target.is_dir() and tree_hash(target) != target.name:
            target.rename(work.with_suffix(".damaged"))
        if not target.is_dir():
            work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target.name


def is_copy(root: Path) -> bool:
    """Say whether a directory is a frozen copy, in which code that runs from it finds itself."""
    return root.parent.name == CODE_DIR and root.parent.parent.name == SWEEP_DIR


def task_places(frozen: Path) -> list[str]:
    """Return the directories of a copy to import tasks from that lie outside the project."""
    return [str(path) for path in sorted((frozen / TASKS_DIR).glob("*"))]


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


def present_hash(home: Path, root: Path = PROJECT_ROOT, names: Iterable[str] = ()) -> str:
    """Return what :func:`freeze` would call a copy made at this moment. Writes nothing."""
    return _hash(present_contents(names, home, root))


def _hash(contents: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for file, content in sorted(contents.items()):
        digest.update(os.fsencode(f"{file}\0{content}\n"))
    return digest.hexdigest()[:16]


def frozen_contents(frozen: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a copy, by its name there."""
    return {
        file: _sha256(frozen / file) for file in _walked(frozen, skip=frozenset({"__pycache__"}))
    }


def present_contents(names: Iterable[str], home: Path, root: Path = PROJECT_ROOT) -> dict[str, str]:
    """Return the same of the files that :func:`freeze` would copy at this moment."""
    return {file: _sha256(source) for source, file in _sources(names, root, home)}


def _sha256(path: Path) -> str:
    content = os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()
    return hashlib.sha256(content).hexdigest()


def _sources(names: Iterable[str], root: Path, home: Path) -> Iterator[tuple[Path, str]]:
    """Yield every file to freeze, and its name in the copy."""
    if is_copy(root):  # a copy is launched from: all of it, its tasks' directories too
        yield from ((root / file, file) for file in frozen_contents(root))
        return
    results = _results(home)
    for file in _source_files(root, results):
        yield root / file, file
    origins = sorted({origin for name in names if (origin := tasks.origin(name))})
    elsewhere = [origin for origin in origins if origin[0] != root]
    for number, place in enumerate(sorted({place for place, _ in elsewhere})):
        for file in _beside(place, [package for at, package in elsewhere if at == place], results):
            yield place / file, f"{TASKS_DIR}/{number}/{file}"


def _results(home: Path) -> Path:
    """Return the directory of the sweeps, whose files are not code even where git sees them."""
    sweep = home.resolve().parent
    return sweep if sweep.parent == Path.cwd() else sweep.parent


def _beside(place: Path, packages: list[str], results: Path) -> Iterator[str]:
    """Yield the files to freeze of a directory that tasks are imported from."""
    listed = list(_source_files(place, results)) if _git_files(place) is not None else []
    first = {file.partition("/")[0].removesuffix(".py") for file in listed}
    if first.issuperset(packages):
        yield from listed
        return
    yield from (path.name for path in place.glob("*.py"))
    for package in packages:
        yield from (f"{package}/{file}" for file in _source_files(place / package, results))


def _source_files(root: Path, results: Path) -> Iterator[str]:
    listed = _git_files(root)
    inside = f"{results.relative_to(root)}/" if root in results.parents else None
    for file in listed if listed is not None else _walked(root):
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


def _walked(root: Path, skip: frozenset[str] = _NOT_CODE) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        folders[:] = [name for name in folders if name not in skip]
        for name in files + links:
            yield os.path.relpath(os.path.join(folder, name), root)
