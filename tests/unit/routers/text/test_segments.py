"""Prompts in segments."""

import pytest

from routers.text.segments import Parts, parts_of


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("", "", "", "")),
        ("one line", ("one line",) * 4),
        ("what is it? a bird", ("what is it?", "a bird", "a bird", "what is it?")),
        ("so true\n\nserious or joking?", ("so true", "serious or joking?", "serious or joking?", "so true")),
        ("a: b. c! d", ("a:", "d", "b. c! d", "a: b. c!")),
        ("!!!\nhello\n---", ("!!!\nhello\n---",) * 4),
        ("same\nsame", ("same", "same", "same", "same")),
        ("half past 3.5 o'clock", ("half past 3.5 o'clock",) * 4),
    ],
)
def test_a_prompts_ends_and_the_rest(text: str, parts: tuple[str, ...]) -> None:
    assert parts_of(text) == Parts(*parts)
