"""The language of --where: what holds, and what a mistake is answered with."""

from __future__ import annotations

import contextlib
import math

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.conditions import holds
from rundir import UserError

TABLE = pd.DataFrame(
    {
        "name": pd.Series(["a b", "or", "c", None], dtype=pd.ArrowDtype(pa.string())),
        "lr": pd.Series([0.1, 0.2, None, 0.4], dtype="double[pyarrow]"),
        "loss": pd.array(pa.array([1.0, math.nan, 3.0, None]), dtype="double[pyarrow]"),
        "n": pd.Series([1, 2, 3, 4], dtype="int64[pyarrow]"),
        "done": pd.Series([True, False, None, True], dtype="bool[pyarrow]"),
        "optimizer.wd": pd.Series([0.0, 0.1, 0.2, 0.3], dtype="double[pyarrow]"),
        "asked": pd.Series(["0.1", 5, None, True], dtype=object),
    }
)


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("lr>0.1", [1, 3]),
        ("  lr >= 1e-1 ", [0, 1, 3]),
        ("n != 2", [0, 2, 3]),
        ("done = true", [0, 3]),
        ("not done = true", [1]),
        ("name = 'a b' or name == c", [0, 2]),
        ('name = "or" or lr < 0.15', [0, 1]),
        ("name != c", [0, 1]),
        ("name ~ B", [0]),
        ("lr = null", [2]),
        ("lr != null", [0, 1, 3]),
        ("not lr > 0.1", [0]),
        ("loss > 0", [0, 2]),
        ("loss != 1", [1, 2]),
        ("wd in (0.1, 0.3)", [1, 3]),
        ("not wd in (0.1)", [0, 2, 3]),
        ("n>1 and n<4 or n=1", [0, 1, 2]),
        ("n>1 and (n<4 or n=1)", [1, 2]),
        ("NOT (n=1 OR n=2) AND lr=0.4", [3]),
        ("asked = 0.1", [0]),
        ("asked = 5", [1]),
        ("'name' < b", [0]),
    ],
)
def test_what_holds(condition: str, rows: list[int]) -> None:
    answer = holds(condition, TABLE)
    assert answer.dtype == bool
    assert TABLE.index[answer].tolist() == rows


@pytest.mark.parametrize(
    ("condition", "fault"),
    [
        ("", "must have a column where the end is, at character 1"),
        ("lr >", "must have a value where the end is, at character 5"),
        ("lr 3", "must have one of = != < <= > >= ~ in where '3' is, at character 4"),
        ("lr > big", "must compare lr with a number, at character 6"),
        ("done = 2", "must compare done with true or false, at character 8"),
        ("lr > 1 name = c", "must have 'and', 'or' or the end (quotes join words) where 'name' is"),
        ("(lr > 1", "must have ')' where the end is, at character 8"),
        ("lr > 1)", "where ')' is, at character 7"),
        ("lr > 1 and", "must have a column where the end is, at character 11"),
        ("wd in 3", "must have '(' and the values where '3' is, at character 7"),
        ("wd in (3 4)", "must have ',' or ')' where '4' is, at character 10"),
        ("name = 'c", 'has "\'" that begins nothing, at character 8'),
        ("! lr > 1", "has '!' that begins nothing, at character 1"),
        ("(" * 500, "is nested too deeply, at character 101"),
    ],
)
def test_a_mistake_is_placed(condition: str, fault: str) -> None:
    with pytest.raises(UserError) as caught:
        holds(condition, TABLE)
    message = str(caught.value)
    assert message.startswith(f"where = {condition!r}; ")
    assert fault in message


def test_a_setting_in_which_no_runs_differ_keeps_its_short_name() -> None:
    path = "config.optimizer.optimizer_params"
    columns = {f"{path}.lr": 0.1, f"{path}.name": "muon", "final.train.lr": 9, "best.train.lr": 9}
    table = pd.DataFrame({name: [value] for name, value in columns.items()})
    assert holds("lr = 0.1 and optimizer = muon and final.train.lr = 9", table).all()
    with pytest.raises(UserError, match=r"unknown column optimiser; .* did you mean optimizer\?"):
        holds("optimiser = muon", table)
    with pytest.raises(UserError, match=r"column = train.lr; must be one of: best.train.lr, final"):
        holds("train.lr = 9", table.rename(columns={"final.train.lr": "final.a.train.lr"}))


def test_an_unknown_column_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"unknown column los; must be one of: .* did you mean loss"
    ):
        holds("los > 1", TABLE)


WORDS = st.sampled_from(
    [*"()<>=~,'\"!", "lr", "n", "name", "and", "or", "not", "in", "0.2", "null", "__import__", " "]
)


@settings(max_examples=200, deadline=None)
@given(words=st.lists(st.one_of(WORDS, st.text(max_size=3)), max_size=12))
def test_any_text_is_answered_or_refused(words: list[str]) -> None:
    with contextlib.suppress(UserError):
        assert len(holds(" ".join(words), TABLE)) == len(TABLE)
