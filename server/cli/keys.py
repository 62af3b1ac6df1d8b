"""``moergate keys``: works on the home folder directly, so that the first key can be made before the gateway runs."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.table import Table

from adapters_registry.errors import KeyNotFound
from adapters_registry.key_limits import KeyLimits, Used
from adapters_registry.keys import generate_key, new_key
from adapters_registry.records import MAX_CARD_ITEM_CHARS, KeyRecord, utc_now
from adapters_registry.visibility import Sight
from server.cli.client import AsJson, ClientError, print_json, print_table
from server.cli.home import Home, with_library
from server.settings import load_settings

if TYPE_CHECKING:
    from adapters_registry.library import Library

app = typer.Typer(no_args_is_help=True)

SCOPES = ("infer", "admin", "metrics")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the key: what or whom it is for.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="infer, admin or metrics; repeat for several. Default: infer.")
    ] = None,
    experts: Annotated[
        list[str] | None, typer.Option(help="Pattern of expert names that the key may use, such as 'sql*'; repeat.")
    ] = None,
    policies: Annotated[
        list[str] | None, typer.Option(help="Pattern of policy names that the key may use; repeat.")
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(help="Tag of experts that the key may use, and of policies that have any; repeat."),
    ] = None,
    tenant: Annotated[
        str | None,
        typer.Option(help="Tenant whose experts and policies the key may use, beside those without a tenant."),
    ] = None,
    expires_days: Annotated[int | None, typer.Option(min=1, help="Days until the key expires. Default: never.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Maximum requests in a minute.")] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Maximum tokens in a minute, of prompts and answers.")
    ] = None,
    budget_per_day: Annotated[
        float | None, typer.Option(min=0, help="Maximum cost in a UTC day, in the currency of the setting prices.")
    ] = None,
    budget_per_month: Annotated[float | None, typer.Option(min=0, help="Maximum cost in a UTC month.")] = None,
    max_concurrency: Annotated[int | None, typer.Option(min=1, help="Maximum concurrent requests.")] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and print it. The key is shown only once; only its hash is stored."""
    scopes = frozenset(scope or ["infer"])
    if unknown := scopes - set(SCOPES):
        raise ClientError(f"Unknown scope {sorted(unknown)[0]!r}: scopes are {', '.join(SCOPES)}.", 2)
    try:
        limits = KeyLimits(
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            budget_per_day=budget_per_day,
            budget_per_month=budget_per_month,
            max_concurrency=max_concurrency,
        )
    except ValidationError as error:
        raise ClientError("; ".join(f"{e['loc'][0]}: {e['msg']}" for e in error.errors()), 2) from None
    bounds = [*([] if tenant is None else [tenant]), *(tag or [])]
    if not all(0 < len(bound) <= MAX_CARD_ITEM_CHARS for bound in bounds):
        raise ClientError(f"A tenant or tag has 1 to {MAX_CARD_ITEM_CHARS} characters; omit the option for none.", 2)
    record, plaintext = new_key(
        name,
        scopes=scopes,
        experts=experts or ["*"],
        policies=policies or ["*"],
        tags=tag or [],
        tenant=tenant or "",
        expires_at=utc_now() + timedelta(days=expires_days) if expires_days else None,
        limits=limits,
    )
    settings = load_settings({"home": home})
    with_library(settings, lambda library: library.keys.add(record, actor="command line"))
    if (budget_per_day or budget_per_month) and not settings.prices:
        typer.echo("No prices are set here; unless the gateway has prices, every request costs 0.", err=True)
    _tell(record, plaintext, as_json)


@app.command()
def rotate(
    key_id: Annotated[str, typer.Argument(help="The key's id, as shown by 'keys list'.")],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Replace a key's secret and print the new one. Rights and usage stay; the old secret stops working."""
    _, plaintext, digest = generate_key(key_id)
    record = with_library(
        load_settings({"home": home}), lambda library: library.keys.replace_secret(key_id, digest, actor="command line")
    )
    _tell(record, plaintext, as_json)


@app.command()
def show(
    key_id: Annotated[str, typer.Argument(help="The key's id, as shown by 'keys list'.")],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Show a key's rights, its usage of its limits, and its running requests."""

    async def look(library: Library) -> tuple[KeyRecord, tuple[Used, ...], int]:
        record = await library.keys.find(key_id)
        if record is None:
            raise KeyNotFound(key_id)
        used = await library.usage.used(key_id, record.limits, utc_now())
        return record, used, await library.running.under_way(key_id)

    record, used, num_running = with_library(load_settings({"home": home}), look)
    now = {u.window.period: {"requests": u.requests, "tokens": u.tokens, "cost": round(u.cost, 6)} for u in used}
    shown = _shown(record) | {"used": now}
    if record.limits.max_concurrency is not None:
        shown["under_way"] = num_running
    if as_json:
        print_json(shown)
        return
    table = Table(show_header=False, box=None)
    for field, value in shown.items():
        if isinstance(value, dict):
            value = "; ".join(f"{name} {each}" for name, each in value.items()) or "none"
        table.add_row(field, ", ".join(value) if isinstance(value, list) else str(value))
    print_table(table)


@app.command("list")
def list_keys(home: Home = None, as_json: AsJson = False) -> None:
    """List the keys, without their secrets."""
    records = with_library(load_settings({"home": home}), lambda library: library.keys.list())
    if as_json:
        print_json([_shown(record) for record in records])
        return
    table = Table("id", "name", "scopes", "sees", "created", "state", box=None)
    for record in records:
        shown = _shown(record)
        table.add_row(
            record.key_id,
            record.name,
            ", ".join(shown["scopes"]),
            _in_words(record.sight),
            shown["created_at"],
            shown["state"],
        )
    print_table(table)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, as shown by 'keys list'.")],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Revoke a key permanently; a running gateway applies it within seconds."""
    record = with_library(
        load_settings({"home": home}), lambda library: library.keys.revoke(key_id, actor="command line")
    )
    print_json(_shown(record)) if as_json else typer.echo(f"{record.key_id} is revoked.")


def _tell(record: KeyRecord, plaintext: str, as_json: bool) -> None:
    """Print a key's secret, which is shown only once."""
    if as_json:
        print_json(_shown(record) | {"key": plaintext})
    else:
        typer.echo(plaintext)
        typer.echo("Store it now: it cannot be shown again.", err=True)


def _in_words(sight: Sight) -> str:
    """Describe the experts that a key sees, on one line."""
    bounds = (("tagged ", ", ".join(sight.tags)), ("tenant ", sight.tenant))
    return "; ".join([", ".join(sight.experts), *(f"{what}{bound}" for what, bound in bounds if bound)])


def _shown(record: KeyRecord) -> dict[str, Any]:
    expired = record.expires_at is not None and record.expires_at <= utc_now()
    return {
        "id": record.key_id,
        "name": record.name,
        "scopes": sorted(record.scopes),
        "experts": list(record.sight.experts),
        "policies": list(record.sight.policies),
        "tags": list(record.sight.tags),
        "tenant": record.sight.tenant,
        "limits": record.limits.model_dump(exclude_none=True),
        "created_at": record.created_at.isoformat(timespec="seconds"),
        "expires_at": record.expires_at.isoformat(timespec="seconds") if record.expires_at else None,
        "state": "revoked" if record.revoked_at else "expired" if expired else "active",
    }
