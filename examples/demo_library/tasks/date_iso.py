"""Written dates to ISO 8601: "March 5th, 2019" → `2019-03-05`."""

from __future__ import annotations

import random
from datetime import date, timedelta

from .base import Item, Split, Task

_FIRST = date(1950, 1, 1)
_NUM_DAYS = 36_525


def _ordinal(day: int) -> str:
    suffix = "th" if 10 <= day <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{suffix}"


def _make(rng: random.Random, split: Split) -> Item:
    day = _FIRST + timedelta(days=rng.randrange(_NUM_DAYS))
    month, short, weekday = day.strftime("%B"), day.strftime("%b"), day.strftime("%A")
    text = rng.choice(
        [
            f"{month} {day.day}, {day.year}",
            f"{month} {_ordinal(day.day)}, {day.year}",
            f"{day.day} {month} {day.year}",
            f"the {_ordinal(day.day)} of {month} {day.year}",
            f"{short} {day.day} {day.year}",
            f"{day.day:02d} {short} {day.year}",
            f"{weekday}, {month} {day.day}, {day.year}",
        ]
    )
    return Item(text, day.isoformat(), key=day.isoformat())


TASK = Task(
    name="date_iso",
    description="Rewrites a date written in words as an ISO 8601 date (YYYY-MM-DD).",
    tags=("dates", "normalisation"),
    train_templates=(
        "Convert this date to ISO 8601: {x}",
        "What is {x} in ISO format?",
        "Write {x} as YYYY-MM-DD.",
        "Please reformat the date {x} so that it reads year-month-day.",
        "date to iso: {x}",
        "I need {x} in the YYYY-MM-DD format for my spreadsheet",
        "My contract was signed on {x}. Give me that date as year, month, day with dashes.",
        "Normalise this date for a database column: {x}",
        "How do I write {x} as an ISO date?",
        "{x} -> YYYY-MM-DD",
    ),
    test_templates=(
        "Can you turn {x} into a proper ISO 8601 date?",
        "iso date for {x} please",
        "The form only takes dates like YYYY-MM-DD. What do I enter for {x}?",
        "She was born on {x}; standardise that date for me in ISO notation.",
        "{x} in iso 8601",
    ),
    make=_make,
)
