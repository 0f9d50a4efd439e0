"""A check of the user's own, as docs/tasks.md shows it."""

import pytest

from rundir import UserError
from sweeps.planning import tasks


@pytest.mark.parametrize(
    ("resolved", "said"),
    [
        (
            {"lr": "abc"},
            (
                "check checking.check failed: TypeError: "
                "'<=' not supported between instances of 'str' and 'int'"
            ),
        ),
        ({"lr": "assert"}, "check checking.check failed: AssertionError"),
        ({}, "check checking.check failed: KeyError: 'lr'"),
        ({"lr": -1}, "lr must be positive"),
        (
            {"check": "unimportable.check"},
            "check unimportable.check failed: RuntimeError: no such library",
        ),
        (
            {"check": None, "task": "unimportable.inner.run"},
            "task = unimportable.inner.run; looking for it failed: RuntimeError: no such library",
        ),
    ],
)
def test_whatever_a_check_raises_is_the_users_error_in_one_line(
    resolved, said, tmp_path, monkeypatch
):
    (tmp_path / "checking.py").write_text(MINE)
    (tmp_path / "unimportable.py").write_text("raise RuntimeError('no such library')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as raised:
        tasks.check({"check": "checking.check", "task": "checking.run", **resolved})
    assert str(raised.value) == said


@pytest.mark.parametrize("here", [True, False])
def test_a_check_is_told_of_the_place_what_it_asks_for(here, tmp_path, monkeypatch):
    (tmp_path / "placed.py").write_text(PLACED)
    monkeypatch.syspath_prepend(tmp_path)
    cluster = {"nodes": 2, "tasks_per_node": 4}
    with pytest.raises(UserError) as raised:
        tasks.check({"check": "placed.check", "task": "placed.run", "cluster": cluster}, here=here)
    assert str(raised.value) == f"8 here: {here}"


PLACED = """
from rundir import UserError

def check(config, world_size, *, here):
    raise UserError(f"{world_size} here: {here}")
"""


MINE = """
from rundir import UserError

def check(config):
    assert config["lr"] != "assert"
    if config["lr"] <= 0:
        raise UserError("lr must be positive")

def run(config, run):
    pass
"""
