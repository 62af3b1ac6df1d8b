"""The skills of the demo library, one module each; `TASKS` lists them by name."""

from __future__ import annotations

from . import (
    csv_json,
    date_iso,
    future_tense,
    ingredient_json,
    log_json,
    number_words,
    past_tense,
    sql_shop,
    ticket_team,
    time_24h,
)
from .base import Item, Sample, Split, Task, split_of

TASKS: dict[str, Task] = {
    module.TASK.name: module.TASK
    for module in (
        date_iso,
        time_24h,
        number_words,
        past_tense,
        future_tense,
        log_json,
        csv_json,
        ingredient_json,
        sql_shop,
        ticket_team,
    )
}

__all__ = ["TASKS", "Item", "Sample", "Split", "Task", "split_of"]
