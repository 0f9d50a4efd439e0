import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rundir import OptsweepError
from sweeps.planning import tasks
from sweeps.records import codefiles
from sweeps.records.freeze import freeze, import_from, present_hash, verify
from sweeps.records.pythonpath import name_of


@pytest.fixture(autouse=True)
def path():
    """Python's path without the directories that the tests themselves are imported from."""
    # Not by monkeypatch: its syspath_prepend would restore this one's path at the end.
    before = list(sys.path)
    sys.path[:] = [e for e in before if e and tasks.is_installed(Path(e).resolve())]
    yield
    sys.path = before


def copied(home, name):
    """Return the names of all files and links in a copy."""
    frozen = home / "code" / name
    verify(frozen)
    found = frozen.rglob("*")
    return {str(p.relative_to(frozen)) for p in found if p.is_symlink() or not p.is_dir()}


@pytest.fixture
def project(tmp_path):
    root = tmp_path / "project"
    root.mkdir()
    (root / "tracked.py").write_text("x = 1\n")
    (root / ".gitignore").write_text("ignored.py\n")
    (root / "ignored.py").write_text("secret\n")
    os.symlink("tracked.py", root / "link.py")
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    (root / "untracked.py").write_text("y = 2\n")
    return root


def test_copies_tracked_changed_and_untracked_files_but_not_ignored_ones(project, tmp_path):
    (project / "tracked.py").write_text("x = 'changed'\n")
    name = freeze(tmp_path / "home", project)
    frozen = tmp_path / "home" / "code" / name
    assert (frozen / "tracked.py").read_text() == "x = 'changed'\n"
    assert (frozen / "untracked.py").exists()
    assert (frozen / "link.py").is_symlink()
    assert not (frozen / "ignored.py").exists()
    verify(frozen)


def test_the_same_code_is_stored_once_and_other_code_beside_it(project, tmp_path):
    first = freeze(tmp_path / "home", project)
    assert freeze(tmp_path / "home", project) == first
    (project / "tracked.py").write_text("x = 3\n")
    second = freeze(tmp_path / "home", project)
    assert sorted(os.listdir(tmp_path / "home" / "code")) == sorted([first, second])


def test_nothing_is_copied_or_written_where_the_present_code_is_frozen_already(project, tmp_path):
    home = tmp_path / "home"
    name = freeze(home, project)
    before = {path: path.stat().st_mtime_ns for path in (home / "code").rglob("*")}
    folder = (home / "code").stat().st_mtime_ns
    assert freeze(home, project) == present_hash(home, project) == name
    assert {path: path.stat().st_mtime_ns for path in (home / "code").rglob("*")} == before
    assert (home / "code").stat().st_mtime_ns == folder


@pytest.mark.parametrize("tamper", ["edit", "add", "remove"])
def test_a_changed_copy_refuses_to_run(project, tmp_path, tamper):
    frozen = tmp_path / "home" / "code" / freeze(tmp_path / "home", project)
    if tamper == "edit":
        (frozen / "tracked.py").write_text("x = 2\n")
    elif tamper == "add":
        (frozen / "new.py").write_text("")
    else:
        (frozen / "tracked.py").unlink()
    with pytest.raises(OptsweepError, match="has changed since submission"):
        verify(frozen)


def test_outside_git_everything_but_results_is_code(tmp_path):
    root = tmp_path / "plain"
    (root / "outputs").mkdir(parents=True)
    (root / "outputs" / "big").write_text("result")
    (root / "a.py").write_text("")
    frozen = tmp_path / "home" / "code" / freeze(tmp_path / "home", root)
    assert os.listdir(frozen) == ["a.py"]


@pytest.mark.parametrize("is_git", [True, False])
def test_results_are_no_code_wherever_they_lie(project, tmp_path, is_git):
    for place in ("elsewhere/s/.sweep/plan.json", "elsewhere/s/a/run.json", "single/.hydra/x.yaml"):
        (project / place).parent.mkdir(parents=True, exist_ok=True)
        (project / place).write_text("{}")
    (project / "elsewhere" / "kept.py").write_text("")
    if not is_git:
        shutil.rmtree(project / ".git")
    home = tmp_path / "home"
    found = copied(home, freeze(home, project))
    assert {"elsewhere/kept.py", "untracked.py"} <= found
    assert not [name for name in found if name.endswith((".json", ".yaml"))]


def test_what_git_tracks_is_code_whatever_its_directory_is_called(project, tmp_path):
    tracked = {"lib/store/a.py", "build/b.py", "single/c.py"}
    for name in (*tracked, "lib/outputs/new.py"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("")
    subprocess.run(["git", "-C", str(project), "add", *tracked], check=True)
    (project / "single" / ".hydra").mkdir()  # a run whose directory is that of its code
    (project / "single" / "run.json").write_text("{}")
    home = tmp_path / "home"
    found = copied(home, freeze(home, project))
    assert found >= {*tracked, "lib/outputs/new.py"}
    assert "single/run.json" not in found


def test_a_damaged_copy_is_put_aside_and_made_anew(project, tmp_path):
    name = freeze(tmp_path / "home", project)
    (tmp_path / "home" / "code" / name / "tracked.py").write_text("damage")
    assert freeze(tmp_path / "home", project) == name
    verify(tmp_path / "home" / "code" / name)


def test_a_task_outside_the_project_is_frozen_with_what_lies_beside_it(
    project, tmp_path, monkeypatch
):
    place = tmp_path / "mine"
    (place / "my_package").mkdir(parents=True)
    (place / "my_package" / "task.py").write_text("from beside_it import x\n")
    (place / "beside_it.py").write_text("x = 1\n")
    (place / "multirun").mkdir()
    (place / "data.csv").write_text("1,2\n")
    monkeypatch.syspath_prepend(place)
    home = place / "multirun" / "s" / ".sweep"
    frozen = home / "code" / freeze(home, project, ["my_package.task.run", "tracked.run"])
    copy = frozen / ".path" / name_of(place)
    assert sorted(p.name for p in copy.rglob("*.py")) == ["beside_it.py", "task.py"]
    assert [path.name for path in copy.iterdir() if path.is_symlink()] == ["data.csv"]
    verify(frozen)
    (copy / "beside_it.py").write_text("x = 2\n")
    with pytest.raises(OptsweepError, match="has changed since submission"):
        verify(frozen)


def test_of_a_task_in_a_git_tree_of_its_own_that_tree_is_frozen_without_results(
    project, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(project)
    (project / "results" / "s").mkdir(parents=True)
    (project / "results" / "s" / "metrics.jsonl").write_text("result\n")
    home = project / "results" / "s" / ".sweep"
    plain = tmp_path / "plain"
    plain.mkdir()
    place = f".path/{name_of(project)}"
    assert copied(home, freeze(home, plain, ["untracked.run"])) == {
        f"{place}/{name}" for name in (".gitignore", "link.py", "tracked.py", "untracked.py")
    }


def test_an_installed_task_is_not_frozen(project, tmp_path):
    frozen = tmp_path / "home" / "code" / freeze(tmp_path / "home", project, ["yaml.safe_load"])
    assert not (frozen / ".path").exists()


def test_promise_05_a_link_that_leaves_the_copied_tree_is_frozen_as_what_it_leads_to(
    project, tmp_path
):
    outside = tmp_path / "outside"
    (outside / "package").mkdir(parents=True)
    (outside / "real.py").write_text("x = 1\n")
    (outside / "package" / "inner.py").write_text("x = 1\n")
    os.symlink("inner.py", outside / "package" / "beside.py")
    os.symlink("../real.py", outside / "package" / "above.py")
    os.symlink("../..", outside / "package" / "loop")
    os.symlink("../outside/real.py", project / "relative.py")
    os.symlink(project / "tracked.py", project / "absolute.py")
    os.symlink("ignored.py", project / "to_ignored.py")
    os.symlink(outside / "package", project / "package")
    name = freeze(tmp_path / "home", project)
    frozen = tmp_path / "home" / "code" / name
    followed = ["relative.py", "absolute.py", "to_ignored.py", "package/above.py"]
    assert not any((frozen / file).is_symlink() for file in [*followed, "package"])
    assert os.readlink(frozen / "package" / "beside.py") == "inner.py"
    assert os.readlink(frozen / "link.py") == "tracked.py"
    assert (frozen / "relative.py").read_text() == "x = 1\n"
    assert (frozen / "package" / "inner.py").read_text() == "x = 1\n"
    verify(frozen)
    assert present_hash(tmp_path / "home", project) == name
    (outside / "real.py").write_text("x = 2\n")
    assert present_hash(tmp_path / "home", project) != name
    assert (frozen / "relative.py").read_text() == "x = 1\n"


def test_a_link_to_data_or_results_stays_a_link_and_one_to_too_much_code_is_told(
    project, tmp_path, monkeypatch
):
    monkeypatch.setattr(codefiles, "MAX_FILES", 2)
    for name in ("data", "code", "run"):
        (tmp_path / name).mkdir()
    for i in range(3):
        (tmp_path / "data" / f"{i}.bin").write_text("")
        (tmp_path / "code" / f"m{i}.py").write_text("")
    (tmp_path / "run" / ".hydra").mkdir()
    for name in ("data", "code", "run"):
        os.symlink(tmp_path / name, project / name)
    told = []
    frozen = tmp_path / "home" / "code" / freeze(tmp_path / "home", project, tell=told.append)
    assert all((frozen / name).is_symlink() for name in ("data", "code", "run"))
    target = tmp_path / "code"
    assert told == [f"{project / 'code'}, a link to {target}, is not frozen: over 2 files"]


def test_promise_05_what_can_be_imported_from_elsewhere_on_the_path_is_frozen(
    project, tmp_path, monkeypatch
):
    place = tmp_path / "second"
    (place / "package" / "some-data").mkdir(parents=True)
    for file in ("other.py", "package/__init__.py", "package/some-data/x.json", "notes.txt"):
        (place / file).write_text("")
    for file in ("namespace/inner/x.py", "store/__init__.py", "build/lib.py", "data/x.bin"):
        (place / file).parent.mkdir(parents=True)
        (place / file).write_text("")
    (place / "tracked.py").write_text("the project's is found first")
    os.symlink(project / "ignored.py", place / "linked.py")
    monkeypatch.syspath_prepend(place)
    prefix = f".path/{name_of(place)}/"
    frozen = tmp_path / "home" / "code" / freeze(tmp_path / "home", project)
    found = {
        file.removeprefix(prefix)
        for file in copied(tmp_path / "home", frozen.name)
        if file.startswith(prefix)
    }
    packaged = {"package/__init__.py", "package/some-data/x.json", "namespace/inner/x.py"}
    beside = {"notes.txt", "data", "tracked.py"}
    assert found == {"other.py", "linked.py", "store/__init__.py", *packaged, *beside}
    assert {file for file in found if (frozen / prefix / file).is_symlink()} == beside


@pytest.mark.parametrize("limit", ["MAX_FILES", "MAX_BYTES", "MAX_ENTRIES"])
def test_a_directory_of_the_path_that_is_too_large_is_told_and_the_task_there_frozen(
    project, tmp_path, monkeypatch, limit
):
    place = tmp_path / "mine"
    (place / "package").mkdir(parents=True)
    for file in ("package/task.py", "beside.py", "third.py"):
        (place / file).write_text("x = 1\n")
    (place / "more").mkdir()
    (place / "more" / "x.py").write_text("")
    monkeypatch.syspath_prepend(place)
    monkeypatch.setattr(codefiles, limit, 2)
    told = []
    name = freeze(tmp_path / "home", project, ["package.task.run"], tell=told.append)
    assert {f for f in copied(tmp_path / "home", name) if f.startswith(".path")} == {
        f".path/{name_of(place)}/{file}"
        for file in ("package/task.py", "beside.py", "third.py", "more")
    }
    assert len(told) == 1
    assert told[0].startswith(f"{place} is on Python's path; all that runs may import from it is")


@pytest.mark.parametrize("large", ["package/_C.so", "package/weights.bin"])
def test_a_package_with_a_large_file_stays_whole_where_it_is_and_is_told(
    project, tmp_path, monkeypatch, large
):
    place = tmp_path / "lib"
    (place / "package").mkdir(parents=True)
    (place / "package" / "__init__.py").write_text("")
    (place / "other.py").write_text("")
    (place / large).write_text("too large")
    monkeypatch.setattr(codefiles, "MAX_FILE_BYTES", 8)
    monkeypatch.syspath_prepend(place)
    told = []
    frozen = tmp_path / "home" / "code" / freeze(tmp_path / "home", project, tell=told.append)
    verify(frozen)
    copy = frozen / ".path" / name_of(place)
    assert os.readlink(copy / "package") == str(place / "package")
    assert not (copy / "other.py").is_symlink()
    assert told == [f"{place / 'package'} is not frozen: {large} is over 20 MB"]
    assert present_hash(tmp_path / "home", project) == frozen.name


def test_a_large_file_of_the_project_or_of_a_tasks_package_is_a_link_in_the_copy(
    project, tmp_path, monkeypatch
):
    place = tmp_path / "mine"
    (place / "package").mkdir(parents=True)
    (place / "package" / "task.py").write_text("")
    for file in (project / "model.bin", place / "package" / "model.bin", project / "lib.so"):
        file.write_text("too large")
    monkeypatch.setattr(codefiles, "MAX_FILE_BYTES", 8)
    monkeypatch.syspath_prepend(place)
    told = []
    name = freeze(tmp_path / "home", project, ["package.task.run"], tell=told.append)
    frozen = tmp_path / "home" / "code" / name
    package = frozen / ".path" / name_of(place) / "package"
    assert os.readlink(frozen / "model.bin") == str(project / "model.bin")
    assert os.readlink(package / "model.bin") == str(place / "package" / "model.bin")
    assert not (package / "task.py").is_symlink()
    assert told == [f"{project / 'lib.so'} is not frozen: over 20 MB"]


@pytest.mark.parametrize("is_relative", [False, True])
def test_a_link_to_a_directory_with_a_large_file_stays_a_link_and_its_code_is_told(
    project, tmp_path, monkeypatch, is_relative
):
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "prepare.py").write_text("")
    (shards / "train.bin").write_text("too large")
    os.symlink("../shards" if is_relative else shards, project / "data")
    monkeypatch.setattr(codefiles, "MAX_FILE_BYTES", 8)
    told = []
    frozen = tmp_path / "home" / "code" / freeze(tmp_path / "home", project, tell=told.append)
    assert (frozen / "data").is_symlink()
    assert (frozen / "data" / "train.bin").read_text() == "too large"
    assert told == [
        f"{project / 'data'}, a link to {shards}, is not frozen: train.bin is over 20 MB"
    ]


def test_what_lies_beside_code_is_reached_from_its_copy(project, tmp_path, monkeypatch):
    place = tmp_path / "src"
    for file in ("vocab.json", "assets/x.txt", "namespace/some-data/x.txt", "multirun/x.txt"):
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_text(file)
    for file in ("helper.py", "namespace/module.py", "package/__init__.py"):
        (place / file).parent.mkdir(exist_ok=True)
        (place / file).write_text("")
    os.symlink(place / "package", place / "alias")
    monkeypatch.syspath_prepend(place)
    frozen = tmp_path / "home" / "code" / freeze(tmp_path / "home", project)
    verify(frozen)
    copy = frozen / ".path" / name_of(place)
    for file in ("vocab.json", "assets/x.txt", "namespace/some-data/x.txt"):
        assert (copy / file).read_text() == file
    assert not (copy / "multirun").exists()
    assert not (copy / "helper.py").is_symlink()
    assert not (copy / "alias").is_symlink()
    assert (copy / "alias" / "__init__.py").exists()


@pytest.fixture
def unreadable(monkeypatch):
    """Names of files and directories that cannot be read, not by root either."""
    names: set[str] = set()

    def refusing(function):
        def refuse(path, *args, **kwargs):
            if not isinstance(path, int) and Path(os.fsdecode(path)).name in names:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
            return function(path, *args, **kwargs)

        return refuse

    for module, name in ((os, "scandir"), (os, "listdir"), (Path, "read_bytes")):
        monkeypatch.setattr(module, name, refusing(getattr(module, name)))
    return names


@pytest.mark.parametrize("name", ["secret.py", "closed", "lib", "linked"])
def test_what_cannot_be_read_outside_the_project_is_told_and_stays_where_it_is(
    project, tmp_path, monkeypatch, unreadable, name
):
    place = tmp_path / "lib"
    for path in (place / "package" / "closed", tmp_path / "linked"):
        path.mkdir(parents=True)
    for file in ("package/__init__.py", "package/secret.py", "other.py", "package/closed/x.py"):
        (place / file).write_text("")
    os.symlink(tmp_path / "linked", project / "link")
    (tmp_path / "linked" / "x.py").write_text("")
    monkeypatch.syspath_prepend(place)
    unreadable.add(name)
    told = []
    frozen = tmp_path / "home" / "code" / freeze(tmp_path / "home", project, tell=told.append)
    verify(frozen)
    denied = f"{tmp_path / name}: Permission denied"
    left, said = {
        "secret.py": (
            f".path/{name_of(place)}/package/secret.py",
            f"{place / 'package' / 'secret.py'} is not frozen: Permission denied",
        ),
        "closed": (
            f".path/{name_of(place)}/package/closed",
            f"{place / 'package' / 'closed'} is not frozen: Permission denied",
        ),
        "lib": (
            "link.py",
            f"{place} is on Python's path; what runs import from it is not frozen: {denied}",
        ),
        "linked": (
            "link",
            f"{project / 'link'}, a link to {tmp_path / 'linked'}, is not frozen: {denied}",
        ),
    }[name]
    assert (frozen / left).is_symlink()
    assert told == [said]


def test_what_cannot_be_read_of_the_project_is_an_error(project, tmp_path, unreadable):
    unreadable.add("tracked.py")
    with pytest.raises(PermissionError):
        freeze(tmp_path / "home", project)


def test_a_file_that_vanishes_while_it_is_copied_is_told(project, tmp_path, monkeypatch):
    place = tmp_path / "lib"
    place.mkdir()
    (place / "module.py").write_text("")
    monkeypatch.syspath_prepend(place)
    copy2 = shutil.copy2

    def copy(source, target, **how):
        if source == place / "module.py":
            source.unlink()
        return copy2(source, target, **how)

    monkeypatch.setattr(shutil, "copy2", copy)
    told = []
    verify(tmp_path / "home" / "code" / freeze(tmp_path / "home", project, tell=told.append))
    assert told == [f"{place / 'module.py'} is not frozen: No such file or directory"]


def test_a_full_disk_names_the_directory_that_is_full(project, tmp_path, monkeypatch):
    def copy(source, target, **how):
        raise OSError(errno.ENOSPC, "No space left on device", str(source), None, str(target))

    monkeypatch.setattr(shutil, "copy2", copy)
    folder = tmp_path / "home" / "code"
    with pytest.raises(OptsweepError, match=f"can't be copied into {folder}: No space left"):
        freeze(tmp_path / "home", project)
    assert list(folder.iterdir()) == []


def test_the_limits_are_of_all_that_is_frozen_beside_the_project(project, tmp_path, monkeypatch):
    for name in ("first", "second", "linked"):
        (tmp_path / name).mkdir()
        for module in "ab":
            (tmp_path / name / f"{module}.py").write_text("")
    os.symlink(tmp_path / "linked", project / "link")
    monkeypatch.syspath_prepend(tmp_path / "second")
    monkeypatch.syspath_prepend(tmp_path / "first")
    monkeypatch.setattr(codefiles, "MAX_FILES", 4)
    told = []
    name = freeze(tmp_path / "home", project, tell=told.append)
    tops = {file.rpartition("/")[0] for file in copied(tmp_path / "home", name)}
    assert tops == {"", "link", f".path/{name_of(tmp_path / 'first')}"}
    assert len(told) == 1
    assert told[0].startswith(f"{tmp_path / 'second'} is on Python's path; ")
    assert told[0].endswith(" is not frozen: over 4 files with what is frozen already")


def test_a_link_to_many_directories_is_not_looked_through(project, tmp_path, monkeypatch):
    for number in range(4):
        (tmp_path / "many" / str(number)).mkdir(parents=True)
    (tmp_path / "many" / "0" / "data.txt").write_text("")
    os.symlink(tmp_path / "many", project / "link")
    monkeypatch.setattr(codefiles, "MAX_ENTRIES", 3)
    frozen = tmp_path / "home" / "code" / freeze(tmp_path / "home", project)
    assert (frozen / "link").is_symlink()


def test_copies_come_ahead_of_what_they_were_copied_from(project, tmp_path, monkeypatch):
    first, second, launched_from = (tmp_path / name for name in ("b", "a", "c"))
    for place in (first, second, launched_from):
        place.mkdir()
        (place / "module.py").write_text("")
    before = list(sys.path)
    monkeypatch.setattr(sys, "path", [*map(str, (first, second)), *before, str(launched_from)])
    frozen = tmp_path / "home" / "code" / freeze(tmp_path / "home", project)
    monkeypatch.setattr(sys, "path", [str(frozen), *map(str, (first, second)), *before])
    import_from(frozen)
    copies = [str(frozen / ".path" / name_of(p)) for p in (first, second, launched_from)]
    expected = [str(frozen), copies[0], str(first), copies[1], str(second), *before, copies[2]]
    assert sys.path == expected


def test_a_copy_comes_ahead_of_an_original_that_is_mounted_elsewhere_on_the_node(
    project, tmp_path, monkeypatch
):
    mounts = [tmp_path / "login", tmp_path / "node"]
    for mount in mounts:
        mount.mkdir()
        (mount / "module.py").write_text("")
        (mount / "data.txt").write_text(mount.name)
    place = tmp_path / "lib"
    place.symlink_to(mounts[0])
    monkeypatch.syspath_prepend(place)
    frozen = tmp_path / "home" / "code" / freeze(tmp_path / "home", project, ["module.run"])
    place.unlink()
    place.symlink_to(mounts[1])
    import_from(frozen)
    (copy,) = (frozen / ".path").iterdir()
    assert sys.path[:2] == [str(copy), str(place)]
    assert (copy / "data.txt").read_text() == "node"


def test_a_copy_comes_ahead_of_an_original_that_a_link_leads_to_on_the_node(
    project, tmp_path, monkeypatch
):
    place = tmp_path / "lib"
    place.mkdir()
    (place / "module.py").write_text("")
    before = list(sys.path)
    monkeypatch.setattr(sys, "path", [str(place), *before])
    frozen = tmp_path / "home" / "code" / freeze(tmp_path / "home", project)
    (tmp_path / "link").symlink_to(place)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "link"), *before])
    import_from(frozen)
    assert sys.path[:2] == [
        str(frozen / ".path" / name_of(place)),
        str(tmp_path / "link"),
    ]


def test_a_file_name_that_is_no_utf8_is_frozen_as_any_other(project, tmp_path):
    name = b"caf\xe9.py"
    (project / os.fsdecode(name)).write_text("")
    os.symlink(b"to-" + name, os.fsencode(project) + b"/dangling")
    frozen = tmp_path / "home" / "code" / freeze(tmp_path / "home", project)
    assert name in os.listdir(os.fsencode(frozen))
    verify(frozen)


def test_the_files_of_submodules_and_nested_repositories_are_frozen(project, tmp_path):
    for name in ("vendor/sub", "own"):
        inner = project / name
        inner.mkdir(parents=True)
        subprocess.run(["git", "-C", str(inner), "init", "-q"], check=True)
        (inner / ".gitignore").write_text("junk\n")
        (inner / "junk").write_text("")
        (inner / "code.py").write_text("")
    who = ["-c", "user.name=x", "-c", "user.email=x@y"]
    sub = ["git", "-C", str(project / "vendor" / "sub"), *who]
    subprocess.run([*sub, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    add = ["git", "-C", str(project), "-c", "advice.addEmbeddedRepo=false", "add", "vendor/sub"]
    subprocess.run(add, check=True, capture_output=True)
    frozen = tmp_path / "home" / "code" / freeze(tmp_path / "home", project)
    for name in ("vendor/sub", "own"):
        assert sorted(os.listdir(frozen / name)) == [".gitignore", "code.py"]


def test_promise_05_code_frozen_from_a_frozen_copy_is_that_copy(project, tmp_path, monkeypatch):
    place = tmp_path / "mine"
    place.mkdir()
    (place / "my_task.py").write_text("")
    monkeypatch.syspath_prepend(place)
    home = tmp_path / "multirun" / "s" / ".sweep"
    name = freeze(home, project, ["my_task.run"])
    copy = home / "code" / name
    (copy / "__pycache__").mkdir()
    (copy / "__pycache__" / "x.pyc").write_text("")
    (place / "my_task.py").write_text("edited = True")
    assert freeze(home, copy, ["my_task.run"]) == name
    assert present_hash(home, copy, ["my_task.run"]) == name
    other = tmp_path / "multirun" / "t" / ".sweep"
    assert freeze(other, copy, ["my_task.run"]) == name
    verify(other / "code" / name)
