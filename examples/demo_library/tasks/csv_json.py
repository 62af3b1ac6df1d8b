"""One row of a contact list (name, email, city, age) to JSON; comma or semicolon, quoted or not."""

from __future__ import annotations

import json
import random

from .base import Item, Split, Task
from .people import cities, first_names, last_names

_HOSTS = ("example.com", "mail.com", "post.org", "inbox.net", "home.io")


def _make(rng: random.Random, split: Split) -> Item:
    first, last = rng.choice(first_names(split)), rng.choice(last_names(split))
    local = rng.choice(
        [f"{first}.{last}", f"{first[0]}{last}", f"{first}{rng.randrange(10, 99)}", f"{last}_{first}"]
    ).lower()
    email, city, age = f"{local}@{rng.choice(_HOSTS)}", rng.choice(cities(split)), rng.randrange(18, 90)
    cells = [f"{first} {last}", email, city, str(age)]
    text = rng.choice([",".join(cells), ";".join(cells), ", ".join(cells), ",".join(f'"{cell}"' for cell in cells)])
    answer = json.dumps({"name": cells[0], "email": email, "city": city, "age": age})
    return Item(text, answer, key=text)


TASK = Task(
    name="csv_json",
    description="Converts one CSV row of a contact list (name, email, city, age) into a JSON object.",
    tags=("csv", "json", "parsing"),
    train_templates=(
        "Convert this CSV row to JSON: {x}",
        "Turn this line of my contacts CSV into a JSON object.\n{x}",
        "csv to json: {x}",
        "The columns are name, email, city, age. Make JSON from the row {x}",
        "{x}\n\nGive me that spreadsheet row as JSON.",
        "I exported my address book as CSV. What does this row look like as JSON? {x}",
        "Make a JSON record for this contact: {x}",
        "Here is one row of the customer table: {x}. Rewrite it as JSON.",
        "Please transform the comma separated values below into JSON\n{x}",
        "JSON object for this csv line -> {x}",
    ),
    test_templates=(
        "Can you rewrite the following CSV record as JSON?\n{x}",
        "json from csv row: {x}",
        "I have this row in a contacts export: {x}\nReturn it as a JSON object.",
        "Change this delimited contact entry to JSON please: {x}",
        "How would the CSV line {x} look in JSON?",
    ),
    make=_make,
    pools_by_split=True,
)
