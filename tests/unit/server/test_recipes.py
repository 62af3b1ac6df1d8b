"""The recipe language: what parses prints back, what does not says where and why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.recipes import EXPERT_ID, Base, RecipeError, Single, parse


@given(st.from_regex(EXPERT_ID, fullmatch=True))
def test_experts_round_trip(text: str) -> None:
    assert parse(text) == Single(text)
    assert str(parse(text)) == text


def test_base_round_trips() -> None:
    assert parse("base") == Base()
    assert str(Base()) == "base"


@given(st.text(max_size=80))
def test_parsing_is_total(text: str) -> None:
    try:
        recipe = parse(text)
    except RecipeError as error:
        assert 0 <= error.position <= len(text)
        assert error.reason
    else:
        assert str(recipe) == text


@pytest.mark.parametrize(
    ("text", "position", "hint"),
    [
        ("", 0, "1 to 63 characters"),
        ("SQL@1f3a9c02", 0, "'S' cannot stand"),
        ("sql", 3, "needs its version"),
        ("sql@1f3a", 4, "8 hex digits"),
        ("sql@1f3a9c02x", 12, "ends here"),
        ("sql@1F3A9C02", 4, "8 hex digits"),
        ("mix(a@1f3a9c02*1)", 0, "not executed yet"),
        ("a/../b@1f3a9c02", 1, "cannot stand"),
    ],
)
def test_errors_say_where_and_why(text: str, position: int, hint: str) -> None:
    with pytest.raises(RecipeError, match=hint) as error:
        parse(text)
    assert error.value.position == position
