"""``moergate adapters versions|promote|withdraw|rollback|history``: commands for versions of an expert."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import orjson
import typer
from rich.table import Table

from server.cli.client import DEFAULT_URL, AsJson, Key, Url, call, print_json, print_table

Reason = Annotated[str, typer.Option(help="The reason; kept in the history.")]


def versions(
    name: Annotated[str, typer.Argument(help="Name of the expert.")],
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List all versions of an adapter, the newest first."""
    records = call("GET", url, f"/admin/adapters/{quoted(name)}/versions", key=api_key)["data"]
    print_json(records) if as_json else print_versions(records)


def promote(
    ref: Annotated[str, typer.Argument(help="name@version.")],
    share: Annotated[
        float | None,
        typer.Option(
            help="Make a canary with this share of the conversations, 0 to 1; 0 only counts shadow decisions.",
            min=0,
            max=1,
        ),
    ] = None,
    reason: Reason = "",
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Make a version the active version of its name, or with --share its canary."""
    order = {"reason": reason} | ({} if share is None else {"share": share})
    _change(url, f"/admin/adapters/{quoted(ref)}/promote", order, api_key, as_json)


def withdraw(
    ref: Annotated[str, typer.Argument(help="name, or name@version of the canary.")],
    reason: Reason = "",
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Take away a canary's share of the traffic."""
    _change(url, f"/admin/adapters/{quoted(ref)}/withdraw", {"reason": reason}, api_key, as_json)


def rollback(
    name: Annotated[str, typer.Argument(help="Name of the expert.")],
    reason: Reason = "",
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Make the previous version active again."""
    _change(url, f"/admin/adapters/{quoted(name)}/rollback", {"reason": reason}, api_key, as_json)


def history(
    name: Annotated[str | None, typer.Argument(help="name or name@version; without it, every change.")] = None,
    limit: Annotated[int, typer.Option(help="Maximum number of changes.", min=1, max=1000)] = 50,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show who changed what, when and why, the newest first."""
    which = f"&name={quoted(name)}" if name else ""
    entries = call("GET", url, f"/admin/audit?limit={limit}{which}", key=api_key)["data"]
    if as_json:
        print_json(entries)
        return
    table = Table("when", "who", "what", "subject", "from", "to", "why", box=None)
    for entry in entries:
        when = str(entry["at"])[:19].replace("T", " ")
        row = (when, entry["actor"], entry["action"], entry["subject"], entry["from"], entry["to"], entry["reason"])
        table.add_row(*(str(cell or "") for cell in row))
    print_table(table)


def _change(url: str, path: str, order: dict[str, Any], api_key: str | None, as_json: bool) -> None:
    record = call("POST", url, path, key=api_key, body=orjson.dumps(order))
    print_json(record) if as_json else typer.echo(f"{record['id']} is {shown_state(record)}.")


def shown_state(record: dict[str, Any]) -> str:
    """Describe a record's state in words."""
    if record["state"] == "canary":
        return f"a canary with {record['share']:.0%} of the conversations"
    return {"registered": "registered, and will be probed when an engine is ready"}.get(
        str(record["state"]), str(record["state"])
    )


def print_versions(records: list[dict[str, Any]]) -> None:
    """Print versions as a table."""
    table = Table("id", "state", "rank", "modules", "size", "examples", "description", box=None)
    for record in records:
        share = f" {record['share']:.0%}" if record["share"] is not None else ""
        modules = ", ".join(record["target_modules"])
        size = f"{record['size_bytes'] / 2**20:.1f} MiB"
        state = record["state"] + share
        row = (record["id"], state, record["rank"], modules, size, record["num_examples"])
        table.add_row(*map(str, row), record["card"]["description"])
    print_table(table)


def quoted(text: str) -> str:
    """Quote text for a URL path."""
    return quote(text, safe="@")
