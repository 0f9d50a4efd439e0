"""The language of ``--where``: which rows of a table are meant. Nothing of it is ever executed.

    lr >= 0.001 and (optimizer = muon or not diverged = true)
    name = 'lr-0.1 seed 3'      a value of several words, or of special characters, in quotes
    reason ~ memory             the text occurs in it, whatever its case
    wd = null                   nothing was logged or set; `!=` means that something was
    lr in (0.1, 0.01)           one of

A comparison with a null holds neither so nor negated; NaN compares as in IEEE 754.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import pandas as pd
import pyarrow as pa

from analysis.lookup import find_column
from rundir.errors import UserError

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
LEGAL = ("=", "!=", "<", "<=", ">", ">=", "~", "in")
"""As errors list them."""

_TOKENS = re.compile(
    r"""(?P<space>\s+)|(?P<sign>==|!=|<=|>=|[=<>~])|(?P<mark>[(),])
    |(?P<quoted>'[^']*'|"[^"]*")|(?P<word>[^\s=!<>~(),'"]+)""",
    re.VERBOSE,
)
_BOOL = pd.ArrowDtype(pa.bool_())
_DEEPEST = 100


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    at: int
    """Position of its first character, from 1."""

    def is_word(self, *words: str) -> bool:
        return self.kind == "word" and self.text.lower() in words


def holds(condition: str, table: pd.DataFrame) -> pd.Series:
    """Return, as plain bools, which rows the condition holds for.

    Raises:
        UserError: it does not parse, names no column, or compares with a value of another type.
    """
    answer: pd.Series = _Parser(condition, table).answer().fillna(value=False).astype(bool)
    return answer


class _Parser:
    """Reads a condition once from left to right and answers it on the way."""

    def __init__(self, text: str, table: pd.DataFrame) -> None:
        self._text, self._table = text, table
        self._tokens = list(self._cut())
        self._next = self._depth = 0

    def answer(self) -> pd.Series:
        found = self._either()
        if self._token.kind != "end":
            self._fail("'and', 'or' or the end (quotes join words)")
        return found

    def _cut(self) -> Iterator[_Token]:
        at = 0
        while at < len(self._text):
            match = _TOKENS.match(self._text, at)
            if match is None:
                self._refuse(f"has {self._text[at]!r} that begins nothing", at + 1)
            if match.lastgroup != "space":
                yield _Token(str(match.lastgroup), match.group(), at + 1)
            at = match.end()
        yield _Token("end", "the end", at + 1)

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        self._next += 1
        return self._tokens[self._next - 1]

    def _either(self) -> pd.Series:
        found = self._both()
        while self._token.is_word("or"):
            self._take()
            found |= self._both()
        return found

    def _both(self) -> pd.Series:
        found = self._single()
        while self._token.is_word("and"):
            self._take()
            found &= self._single()
        return found

    def _single(self) -> pd.Series:
        self._depth += 1
        if self._depth > _DEEPEST:
            self._refuse("is nested too deeply", self._token.at)
        if self._token.is_word("not"):
            self._take()
            found = ~self._single()
        elif self._token.text == "(":
            self._take()
            found = self._either()
            if self._token.text != ")":
                self._fail("')'")
            self._take()
        else:
            found = self._comparison()
        self._depth -= 1
        return found

    def _comparison(self) -> pd.Series:
        if self._token.kind not in {"word", "quoted"}:
            self._fail("a column")
        name = _unquoted(self._take())
        column = self._table[find_column(name, self._table)]
        sign = self._token
        if sign.is_word("in"):
            self._take()
            return self._is_one_of(name, column)
        if sign.kind != "sign":
            self._fail(f"one of {' '.join(LEGAL)}")
        self._take()
        return self._compared(name, column, sign.text, self._value())

    def _is_one_of(self, name: str, column: pd.Series) -> pd.Series:
        if self._token.text != "(":
            self._fail("'(' and the values")
        found: pd.Series = pd.Series(data=False, index=column.index, dtype=_BOOL)
        while self._token.text != ")":
            self._take()
            found |= self._compared(name, column, "=", self._value())
            if self._token.text not in {",", ")"}:
                self._fail("',' or ')'")
        self._take()
        return found

    def _value(self) -> _Token:
        if self._token.kind not in {"word", "quoted"}:
            self._fail("a value")
        return self._take()

    def _compared(self, name: str, column: pd.Series, sign: str, value: _Token) -> pd.Series:
        if value.is_word("null", "none") and sign in {"=", "==", "!="}:
            absent = column.isna()
            asked: pd.Series = (absent if sign != "!=" else ~absent).astype(_BOOL)
            return asked
        if sign == "~":
            texts = column.astype(object).map(str, na_action="ignore").astype("string[pyarrow]")
            contains: pd.Series = texts.str.contains(_unquoted(value), case=False, regex=False)
            return contains.astype(_BOOL)
        typed = self._typed(name, column, value)
        if not isinstance(column.dtype, pd.ArrowDtype) and column.dtype == object:
            column = column.map(str, na_action="ignore").astype(pd.ArrowDtype(pa.string()))
        compared: pd.Series = OPERATORS[sign](column, typed).astype(_BOOL)
        return compared

    def _typed(self, name: str, column: pd.Series, value: _Token) -> Any:
        text = _unquoted(value)
        if pd.api.types.is_bool_dtype(column):
            if text.lower() not in {"true", "false"}:
                self._refuse(f"must compare {name} with true or false", value.at)
            return text.lower() == "true"
        if pd.api.types.is_numeric_dtype(column):
            try:
                return float(text)
            except ValueError:
                self._refuse(f"must compare {name} with a number", value.at)
        return text

    def _fail(self, wanted: str) -> NoReturn:
        token = self._token
        shown = token.text if token.kind == "end" else repr(token.text)
        self._refuse(f"must have {wanted} where {shown} is", token.at)

    def _refuse(self, fault: str, at: int) -> NoReturn:
        raise UserError(f"where = {self._text!r}; {fault}, at character {at}")


def _unquoted(token: _Token) -> str:
    return token.text[1:-1] if token.kind == "quoted" else token.text
