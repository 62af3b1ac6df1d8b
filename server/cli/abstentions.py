"""``moergate abstentions``: prompts that no expert covers, in groups."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

import typer
from rich.table import Table

from server.cli.client import DEFAULT_URL, AsJson, Key, Url, call, print_json, print_table

HELP = """Group the prompts for which no expert was chosen. The largest groups may deserve an expert.

  moergate abstentions --days 30
  moergate abstentions --policy auto --k 5 --json

This needs the setting decision_log = embeddings, or prompts to show texts too."""


def abstentions(
    policy: Annotated[str | None, typer.Option(help="Only decisions of this policy.")] = None,
    days: Annotated[int, typer.Option(min=1, help="Only decisions of the last DAYS days.")] = 7,
    k: Annotated[
        int | None, typer.Option(min=1, max=50, help="Number of groups. Default: chosen from the data.")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Group the prompts that no expert covers; HELP is the help text."""
    asked = {name: value for name, value in {"policy": policy, "days": days, "k": k}.items() if value is not None}
    answer: dict[str, Any] = call("GET", url, f"/admin/abstentions?{urlencode(asked)}", key=api_key)
    if as_json:
        print_json(answer)
        return
    if answer["data"]:
        table = Table("prompts", "share", "cohesion", "nearest expert", "for example", box=None)
        for group in answer["data"]:
            nearest = f"{group['nearest']['expert']} ({group['nearest']['score']:.2f})" if group["nearest"] else ""
            example = group["prompts"][0][:60] if group["prompts"] else f"request {group['request_ids'][0]}"
            row = (str(group["size"]), f"{100 * group['share']:.0f} %", f"{group['cohesion']:.2f}", nearest)
            table.add_row(*row, " ".join(example.split()))
        print_table(table)
    typer.echo(answer["advice"])
