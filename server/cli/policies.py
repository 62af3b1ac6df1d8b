"""``moergate policies``: list, show and remove policies; list the routing methods."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer
from rich.table import Table

from server.cli.client import DEFAULT_URL, AsJson, Key, Url, call, print_json, print_table

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_policies(url: Url = DEFAULT_URL, api_key: Key = None, as_json: AsJson = False) -> None:
    """List the policies with their state."""
    policies = call("GET", url, "/admin/policies", key=api_key)["data"]
    if as_json:
        print_json(policies)
        return
    table = Table("policy", "router", "state", "experts", "missing", "fitted", "from", box=None)
    for each in policies:
        fitted = (each["provenance"] or {}).get("fitted_at", "")
        table.add_row(
            each["name"],
            each["router"],
            each["state"],
            str(each["num_experts"] or ""),
            str(each["num_missing_experts"] or ""),
            fitted,
            each["origin"],
        )
    print_table(table)
    for each in policies:
        if each["error"]:
            typer.echo(f"{each['name']}: {each['error']}")
        elif each["state"] == "stale":
            typer.echo(f"{each['name']}: the library has changed since; moergate fit {each['name']} --again")
        elif each["state"] == "following":
            num, since = each["num_missing_experts"], each["behind_since"]
            experts = "1 expert" if num == 1 else f"{num} experts"
            typer.echo(f"{each['name']}: not yet fitted to {experts} of the library, since {since}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="The policy.")],
    url: Url = DEFAULT_URL,
    api_key: Key = None,
) -> None:
    """Show a policy with its options and its artefact's provenance."""
    print_json(call("GET", url, f"/admin/policies/{quote(name)}", key=api_key))


@app.command()
def drift(
    name: Annotated[str, typer.Argument(help="The policy.")] = "auto",
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Compare a policy's last decisions on this gateway with those expected from its fit."""
    found = call("GET", url, f"/admin/policies/{quote(name)}/drift", key=api_key)
    if as_json:
        print_json(found)
        return
    index = "" if found["drift"] is None else f" {found['drift']:.3f}"
    typer.echo(f"drift of {name}:{index} ({found['verdict']})")
    table = Table("expert", "traffic", "fitting", "confidence", "in fitting", box=None)
    for each in found["experts"]:
        figures = [each[what][of] for what in ("share", "confidence") for of in ("traffic", "fitting")]
        shown = ["" if value is None else f"{value:.3f}" for value in figures]
        table.add_row(each["expert"], *shown)
    print_table(table)


@app.command()
def rm(
    name: Annotated[str, typer.Argument(help="The policy.")],
    url: Url = DEFAULT_URL,
    api_key: Key = None,
) -> None:
    """Remove a policy that was made with 'moergate fit'."""
    call("DELETE", url, f"/admin/policies/{quote(name)}", key=api_key)
    typer.echo(f"{name} is removed.")


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="A method, to see its options.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the routing methods, or the options of one method; needs no gateway."""
    from server.policies.method_cards import describe_methods

    found = describe_methods([name] if name else None)
    if as_json:
        print_json(found)
        return
    if name:
        (method,) = found
        typer.echo(f"{method['card']['title']}  ({method['card']['paper']})")
        table = Table("option", "default", "meaning", box=None)
        for option, facts in method["options"].items():
            table.add_row(option, str(facts["default"]), facts["description"])
    else:
        table = Table("method", "what it is", "standing", "needs", "refit", box=None)
        for method in found:
            card = method["card"]
            table.add_row(method["name"], card["title"], card["standing"], ", ".join(card["needs"]), card["refit"])
    print_table(table)
