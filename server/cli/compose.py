"""``moergate compose``: merge several experts into one ordinary adapter."""

from __future__ import annotations

from typing import Annotated

import orjson
import typer

from adapters_registry.merging.method_names import METHODS
from server.cli.client import DEFAULT_URL, AsJson, ClientError, Key, Url, call, print_json

HELP = "Merge experts into one ordinary PEFT adapter and register it, for engines without the plugin or other formulas."


def compose(
    name: Annotated[str, typer.Argument(help="Name of the new expert.")],
    recipe: Annotated[str, typer.Option(help="What to merge: mix(sql*0.6,math*0.4).")],
    method: Annotated[str, typer.Option(help=f"The formula: {', '.join(METHODS)}.")] = "exact",
    rank: Annotated[int | None, typer.Option(help="Rank of the result, for svd.")] = None,
    density: Annotated[float, typer.Option(help="Share of entries kept, for magnitude_prune, ties and dare.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Seed of dare's random choice.")] = 0,
    tenant: Annotated[str | None, typer.Option(help="Owner. Default: the tenant of its experts.")] = None,
    description: Annotated[str, typer.Option(help="What the expert is good at.")] = "",
    example: Annotated[
        list[str] | None, typer.Option(help="A prompt that the expert is good at; repeat for more.")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Merge experts into one adapter; HELP is the help text."""
    if method not in METHODS:
        raise ClientError(f"There is no method {method!r}; choose one of {', '.join(METHODS)}.", 2)
    order = {
        "name": name,
        "recipe": recipe,
        "method": method,
        "rank": rank,
        "density": density,
        "seed": seed,
        "card": {"description": description, "tenant": tenant},
        "examples": example or [],
    }
    record = call("POST", url, "/admin/adapters/compose", key=api_key, body=orjson.dumps(order))
    if as_json:
        print_json(record)
    else:
        made = record["card"]["composed_from"]
        typer.echo(f"{record['id']} is registered: {made['method']} of {made['recipe']}, rank {record['rank']}.")
