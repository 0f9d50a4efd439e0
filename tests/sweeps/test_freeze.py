import os
import subprocess

import pytest

from rundir import OptsweepError
from sweeps.records.freeze import freeze, present_hash, task_places, verify


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
    assert sorted(p.name for p in (frozen / ".tasks" / "0").rglob("*.py")) == [
        "beside_it.py",
        "task.py",
    ]
    assert not list(frozen.rglob("data.csv"))
    assert task_places(frozen) == [str(frozen / ".tasks" / "0")]
    verify(frozen)
    (frozen / ".tasks" / "0" / "beside_it.py").write_text("x = 2\n")
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
    frozen = home / "code" / freeze(home, plain, ["untracked.run"])
    copied = {str(p.relative_to(frozen)) for p in frozen.rglob("*") if not p.is_dir()}
    assert copied == {
        f".tasks/0/{name}" for name in (".gitignore", "link.py", "tracked.py", "untracked.py")
    }


def test_an_installed_task_is_not_frozen(project, tmp_path):
    frozen = tmp_path / "home" / "code" / freeze(tmp_path / "home", project, ["yaml.safe_load"])
    assert task_places(frozen) == []


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
