"""Spoken or 12-hour times to the 24-hour clock: "quarter past seven in the evening" → `19:15`."""

from __future__ import annotations

import random

from .base import Item, Split, Task

_HOURS = ("twelve", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")
_PAST = {5: "five past", 10: "ten past", 15: "quarter past", 20: "twenty past", 30: "half past"}


def _day_part(hour: int) -> str:
    if hour < 12:
        return "in the morning"
    if hour < 18:
        return "in the afternoon"
    return "in the evening" if hour < 21 else "at night"


def _spoken(hour: int, minute: int) -> str:
    if minute == 0:
        return f"{_HOURS[hour % 12]} o'clock {_day_part(hour)}"
    return f"{_PAST[minute]} {_HOURS[hour % 12]} {_day_part(hour)}"


def _make(rng: random.Random, split: Split) -> Item:
    if rng.random() < 0.35:
        hour = rng.choice([hour for hour in range(1, 24) if hour != 12])  # people disagree about "twelve at night"
        minute = rng.choice([0, *_PAST])
        text = _spoken(hour, minute)
    else:
        hour, minute = rng.randrange(24), rng.randrange(60)
        half = rng.choice(["am", "AM", "a.m."] if hour < 12 else ["pm", "PM", "p.m."])
        text = f"{(hour - 1) % 12 + 1}:{minute:02d} {half}"
        if minute == 0 and rng.random() < 0.5:
            text = f"{(hour - 1) % 12 + 1} {half}"
    answer = f"{hour:02d}:{minute:02d}"
    return Item(text, answer, key=text.lower().replace(".", ""))


TASK = Task(
    name="time_24h",
    description="Rewrites a time of day, spoken or with am/pm, on the 24-hour clock (HH:MM).",
    tags=("times", "normalisation"),
    train_templates=(
        "Convert {x} to 24-hour time.",
        "What is {x} on the 24-hour clock?",
        "Write the time {x} in military format with a colon.",
        "24h time for {x}",
        "The meeting starts at {x}. How would a 24-hour clock show it?",
        "Please change this time to HH:MM, 24-hour: {x}",
        "{x} -> 24h clock",
        "My phone shows 24-hour time. What will it say at {x}?",
        "Rewrite {x} without am or pm.",
        "How do Europeans write {x} on a digital clock?",
    ),
    test_templates=(
        "Can you give me {x} in 24 hour notation?",
        "The train leaves at {x}; what time is that on the 24-hour timetable?",
        "{x} as HH:MM on a 24 hour clock",
        "Turn the time {x} into 24h format please",
        "If the clock says {x}, what would a twenty-four hour clock read?",
    ),
    make=_make,
)
