import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rundir import UserError
from sweeps.define.overrides import override, parse

# The grammar has no way to write a control character, and reads ${…} as an interpolation.
TEXTS = st.text(st.characters(exclude_categories=["Cc", "Cs"])).filter(lambda s: "${" not in s)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_every_value_arrives_as_it_was_written(value):
    found = parse(override("key", value)).value()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text", ["a'b", 'a"b', "a\\", "\\'", "a b;$(rm -rf x)", "`x`", "1e3", "null", "é,ü"]
)
def test_shell_and_grammar_characters_arrive_unchanged(text):
    assert parse(override("key", text)).value() == text


def test_what_does_not_parse_is_said_in_one_line():
    with pytest.raises(UserError, match=r"^override 'a=\[1' can't be read: [^\n]*$"):
        parse("a=[1")
