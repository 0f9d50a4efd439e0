"""The files of a project: those that git knows or would take, else all but results."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePath

from rundir import UserError
from sweeps.records.codefiles import NOT_CODE, has_runs, walked


def source_files(root: Path, results: Path) -> Iterator[str]:
    """Yield the names of a project's files, those of submodules too.

    What runs wrote does not count, wherever it lies: git need not ignore ``paths.multirun``. But
    what git tracks does: a package may be called ``store``, and lie beside a run's directory.

    Args:
        root: the project; outside git all its files count but results and environments.
        results: directory of the sweeps, whose files do not count.
    """
    holds_runs = cache(lambda name: has_runs(root / name))
    listed, tracked = git_files(root), frozenset(git_files(root, "--cached") or ())
    inside = f"{results.relative_to(root)}/" if root in results.parents else None
    for file in listed if listed is not None else walked(root):
        path = root / file
        if "__pycache__" in path.parts or (inside and file.startswith(inside)):
            continue
        if file not in tracked:
            folders = [str(above) for above in PurePath(file).parents if above.name]
            if file.partition("/")[0] in NOT_CODE or any(map(holds_runs, folders)):
                continue
        if path.is_symlink() or path.is_file():
            yield file
        elif (path / ".git").exists():  # a submodule, or a repository of its own
            inner = source_files(path, results)
            yield from (os.path.join(file, name) for name in inner)


def git_files(root: Path, *which: str) -> list[str] | None:
    """Return what git tracks below a directory or would add there; None outside git or without it.

    Args:
        root: the directory.
        which: options of ``git ls-files`` that ask for less.

    Raises:
        UserError: git has not answered within a minute.
    """
    command = [
        "git",
        "-C",
        str(root),
        "ls-files",
        "-z",
        *(which or ("--cached", "--others", "--exclude-standard")),
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


def results_of(home: Path) -> Path:
    """Return the directory of the sweeps, whose files are not code even where git sees them."""
    sweep = home.resolve().parent
    return sweep if sweep.parent == Path.cwd() else sweep.parent
