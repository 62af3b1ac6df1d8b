"""``moergate route``: show which expert would get a prompt, and why."""

from __future__ import annotations

from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Table

from server.cli.client import DEFAULT_URL, AsJson, Key, Url, call, print_json

HELP = "Ask a running gateway which expert would get a prompt, and why; nothing is generated."


def route(
    text: Annotated[str, typer.Argument(help="The prompt.")],
    model: Annotated[str, typer.Option(help="The policy to ask.")] = "auto",
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show which expert would get a prompt; HELP is the help text."""
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    answer = call("POST", url, "/v1/route", key=api_key, body=orjson.dumps(body))
    if as_json:
        print_json(answer)
        return
    console = Console()
    confidence = "" if answer["confidence"] is None else f"  (confidence {answer['confidence']:.2f})"
    console.print(f"[bold]{answer['recipe']}[/bold]{confidence}", highlight=False)
    console.print(answer["reason"], highlight=False, markup=False)
    for title, rows, column in (
        ("candidates", "candidates", "score"),
        ("nearest examples", "neighbours", "similarity"),
    ):
        if answer[rows]:
            table = Table("expert", column, *(["example"] if rows == "neighbours" else []), title=title, box=None)
            for row in answer[rows]:
                table.add_row(row["expert"], f"{row[column]:.3f}", *([row["example"]] if rows == "neighbours" else []))
            console.print(table)
