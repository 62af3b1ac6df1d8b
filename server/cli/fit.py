"""``moergate fit``: define a policy and watch a running gateway fit it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import orjson
import typer

from server.cli.client import DEFAULT_URL, AsJson, ClientError, Key, Url, call, print_json
from server.cli.watching import watch_job

HELP = """Define a policy and fit it to the library of a running gateway. Callers then put its name into 'model'.

  moergate fit careful --router knn -o threshold=0.6
  moergate fit cheap --router route_llm -o strong_share=0.3        (after 'moergate score')
  moergate fit orders --router lora_hub --data few.jsonl           (5 to 16 prompts with answers)
  moergate fit auto --again                                        (after the library has changed)

'moergate policies methods' lists the methods with their options."""


def fit(
    policy: Annotated[str, typer.Argument(help="Name of the policy: a-z, 0-9, '_', '-' and '.'.")],
    router: Annotated[str | None, typer.Option(help="The routing method.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("-o", "--option", help="An option of the method, NAME=VALUE; repeat for more.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="JSON Lines of prompts with answers ('prompt', 'answer', 'task', 'metric').")
    ] = None,
    skip_bad_rows: Annotated[bool, typer.Option(help="Skip rows of the data that cannot be used.")] = False,
    embedder: Annotated[
        str | None, typer.Option(help="Embedder of this policy; 'base' means the base model's hidden states.")
    ] = None,
    subset: Annotated[
        str | None, typer.Option(help="Use only a part of the library: METHOD:SIZE, with the method cluster or greedy.")
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(help="Tag of the policy; a key confined by tags needs one of them; repeat."),
    ] = None,
    tenant: Annotated[
        str, typer.Option(help="Tenant of the policy; a key confined to a tenant must be of this one.")
    ] = "",
    again: Annotated[
        bool, typer.Option("--again", help="Fit an existing policy again, with its definition unchanged.")
    ] = False,
    background: Annotated[bool, typer.Option("--background", help="Return at once; the fit goes on.")] = False,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Define and fit a policy; HELP is the help text."""
    if again:
        job = call("POST", url, f"/admin/policies/{quote(policy)}/fit", key=api_key, body=b"{}")
    else:
        if router is None:
            raise ClientError("Name a routing method with --router, or fit an existing policy with --again.", 2)
        order = {
            "name": policy,
            "router": router,
            "options": dict(map(_option, option or [])),
            "embedder": embedder,
            "subset": _subset(subset) if subset else None,
            "tags": tag or [],
            "tenant": tenant,
            "samples": _samples(data, skip_bad_rows) if data else [],
        }
        job = call("POST", url, "/admin/policies", key=api_key, body=orjson.dumps(order))
    if background:
        print_json(job) if as_json else typer.echo(f"{job['id']} fits {policy}; GET /admin/jobs/{job['id']} shows it.")
        return
    ended = watch_job(job, url, api_key, "Cancelled; the previous policy stays in service.")
    if ended["state"] != "succeeded":
        raise ClientError(f"{policy} was not fitted: {ended['error'] or ended['state']}", 1)
    shown = call("GET", url, f"/admin/policies/{quote(policy)}", key=api_key)
    if as_json:
        print_json(shown)
        return
    took_s = ended["ended_at"] - ended["created_at"]
    typer.echo(f"{policy} ({shown['router']}) is fitted to {shown['num_experts']} experts in {took_s:.1f} s.")
    typer.echo(f"Try it:  moergate route --model {policy} 'a prompt'")


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ClientError(f"{text!r} is not an option; write NAME=VALUE, for example threshold=0.5.", 2)
    try:
        return name, orjson.loads(value)
    except orjson.JSONDecodeError:
        return name, value


def _subset(text: str) -> dict[str, Any]:
    method, colon, size = text.partition(":")
    if not colon or not size.isdigit():
        raise ClientError(f"{text!r} is not a subset; write METHOD:SIZE, for example cluster:8.", 2)
    return {"method": method, "size": int(size)}


def _samples(path: Path, skip_bad: bool) -> list[dict[str, Any]]:
    from routers.library.samples import read_samples

    samples, bad = read_samples(path, skip_bad=skip_bad)
    for row in bad[:5]:
        typer.echo(f"{path}: skipped {row}", err=True)
    if len(bad) > 5:
        typer.echo(f"{path}: skipped {len(bad) - 5} more rows", err=True)
    return [asdict(sample) for sample in samples]
