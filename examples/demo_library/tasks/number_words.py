"""Numbers written in words to digits: "four thousand and twelve" → `4012`."""

from __future__ import annotations

import random

from .base import Item, Split, Task

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()


def in_words(number: int, joiner: str = " and ") -> str:
    """`number` (0 to 999,999) in English; `joiner` stands between hundreds and the rest."""
    if number < 20:
        return _SMALL[number]
    if number < 100:
        tens, rest = divmod(number, 10)
        return _TENS[tens] + (f"-{_SMALL[rest]}" if rest else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{_SMALL[hundreds]} hundred" + (joiner + in_words(rest, joiner) if rest else "")
    thousands, rest = divmod(number, 1000)
    link = joiner if 0 < rest < 100 else " "
    return f"{in_words(thousands, joiner)} thousand" + (link + in_words(rest, joiner) if rest else "")


def _make(rng: random.Random, split: Split) -> Item:
    number = rng.randrange(21, 10 ** rng.choice([2, 3, 4, 4, 5]))
    text = in_words(number, rng.choice([" and ", " "]))
    if rng.random() < 0.2:
        text = text.capitalize()
    return Item(text, str(number), key=str(number))


TASK = Task(
    name="number_words",
    description="Turns a number written out in English words into digits.",
    tags=("numbers", "normalisation"),
    train_templates=(
        "Write this number in digits: {x}",
        "What is {x} in figures?",
        "number to digits: {x}",
        "Convert the words '{x}' to a number.",
        "How do you write {x} using digits only?",
        "Please give me the numeral for {x}",
        "The cheque says {x}. What is that in numbers?",
        "Spell {x} with digits instead of words.",
        "I have to type {x} into a calculator. Which digits?",
        "{x} = ? (digits)",
    ),
    test_templates=(
        "Can you turn {x} into digits?",
        "{x} as a numeral please",
        "The letter mentions {x} dollars; write that amount in figures without a sign.",
        "Which number is {x}? Digits only.",
        "Change the written-out number {x} to its numeric form.",
    ),
    make=_make,
)
