"""Plain-language schedules to cron expressions: "every weekday at 17:30" → `30 17 * * 1-5`."""

from __future__ import annotations

import random

from .base import Item, Split, Task

_DAYS = {"Monday": 1, "Tuesday": 2, "Wednesday": 3, "Thursday": 4, "Friday": 5, "Saturday": 6, "Sunday": 0}
_DAY_SETS = {"every day": "*", "daily": "*", "every weekday": "1-5", "Monday to Friday": "1-5", "on weekends": "6,0"}


def _clock(rng: random.Random) -> tuple[str, int, int]:
    """A time of day: its text, minute and hour."""
    if rng.random() < 0.1:
        return rng.choice([("noon", 0, 12), ("midnight", 0, 0)])
    hour, minute = rng.randrange(24), rng.choice([0, 0, 5, 10, 15, 20, 25, 30, 30, 35, 40, 45, 50, 55])
    return rng.choice([f"{hour}:{minute:02d}", f"{hour:02d}:{minute:02d}"]), minute, hour


def _make(rng: random.Random, split: Split) -> Item:
    kind = rng.randrange(10)
    clock, minute, hour = _clock(rng)
    if kind < 4:
        phrase, days = rng.choice(list(_DAY_SETS.items()))
        text, cron = f"{phrase} at {clock}", f"{minute} {hour} * * {days}"
    elif kind < 7:
        name, day = rng.choice(list(_DAYS.items()))
        text, cron = rng.choice([f"every {name} at {clock}", f"on {name}s at {clock}"]), f"{minute} {hour} * * {day}"
    elif kind < 9:
        day = rng.randrange(1, 29)
        suffix = "th" if 10 <= day <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
        text = rng.choice([f"on the {day}{suffix} of every month at {clock}", f"on day {day} of each month at {clock}"])
        cron = f"{minute} {hour} {day} * *"
    else:
        step = rng.randrange(2, 31)
        phrase = rng.choice([f"every {step} minutes", f"once every {step} minutes"])
        past_the_hour = (f"{step} minutes past every hour", f"{step} * * * *")
        text, cron = (phrase, f"*/{step} * * * *") if rng.random() < 0.5 else past_the_hour
    return Item(text, cron, key=cron)


TASK = Task(
    name="cron_schedule",
    description="Writes the cron expression (five fields) for a schedule described in plain English.",
    tags=("cron", "scheduling", "devops"),
    train_templates=(
        "Write a cron expression for: {x}",
        "What is the crontab schedule for a job that runs {x}?",
        "cron for {x}",
        "I want my backup script to run {x}. Which cron line do I need?",
        "Give me the five cron fields for {x}",
        "How do I schedule a cron job {x}?",
        "crontab: {x}",
        "Translate this schedule to cron syntax: {x}",
        "My server should restart {x}. Cron expression please.",
        "Set up a scheduled task {x}, in cron format.",
    ),
    test_templates=(
        "Can you give me the cron syntax to run something {x}?",
        "cron expression, {x}",
        "Our report is sent {x}. What goes into the crontab?",
        "I need a cronjob that fires {x}",
        'Express "{x}" as a cron schedule.',
    ),
    make=_make,
)
