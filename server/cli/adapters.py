"""``moergate adapters``: the admin API on the command line."""

from __future__ import annotations

import uuid
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from server.cli.bulk import find_items, import_all
from server.cli.client import DEFAULT_URL, AsJson, ClientError, Key, Url, call, print_json
from server.cli.progress import phases

app = typer.Typer(no_args_is_help=True)

Reason = Annotated[str, typer.Option(help="Why; kept in the history.")]


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Name of the expert: a-z, 0-9, '_', '-' and '.'.")],
    source: Annotated[Path, typer.Argument(help="A PEFT folder, or an archive (zip, tar, tar.gz) of one.")],
    description: Annotated[str, typer.Option(help="What the expert is good at.")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="A tag; repeat for more.")] = None,
    example: Annotated[list[str] | None, typer.Option(help="A prompt that it is good at; repeat for more.")] = None,
    examples_file: Annotated[
        Path | None, typer.Option(help="A file with one example prompt a line, or JSONL with 'prompt'.")
    ] = None,
    max_examples: Annotated[
        int | None, typer.Option(help="Take at most so many of the examples, evenly spaced.", min=1)
    ] = None,
    publish: Annotated[
        str, typer.Option(help="What becomes of it once its probes have passed: active, canary or ready.")
    ] = "active",
    share: Annotated[
        float, typer.Option(help="Of a canary: its part of the conversations, 0 to 1.", min=0, max=1)
    ] = 0.1,
    upload: Annotated[bool, typer.Option(help="Send the files, for a gateway on another machine.")] = False,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Register an adapter, or a new version of one; it can be routed to seconds later."""
    examples = [*(example or []), *(_read_examples(examples_file) if examples_file else [])]
    if max_examples is not None and len(examples) > max_examples:
        examples = [examples[number * len(examples) // max_examples] for number in range(max_examples)]
    manifest: dict[str, Any] = {
        "name": name,
        "card": {"description": description, "tags": tag or []},
        "examples": examples,
        "publish": {"to": publish, "share": share},
    }
    record = _register(manifest, source, upload, url, api_key)
    if as_json:
        print_json(record)
    else:
        typer.echo(f"{record['id']} is {_shown_state(record)}: rank {record['rank']}, {len(examples)} examples.")
        if not examples:
            typer.echo("It has no example prompts, so routers that learn from examples will not choose it.")


@app.command("import")
def import_adapters(
    source: Annotated[
        Path,
        typer.Argument(
            help="A folder with a sub-folder or archive for each adapter, or a list of manifests (JSON, YAML)."
        ),
    ],
    parallel: Annotated[int, typer.Option(help="So many at a time.", min=1, max=64)] = 8,
    upload: Annotated[bool, typer.Option(help="Send the files, for a gateway on another machine.")] = False,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Register many adapters at once. Repeat it as you like: what is there already stays as it is.

    A sub-folder may have, beside the adapter's two files, a manifest.json (or .yaml) with card, examples and publish,
    and an examples.jsonl (or .txt). Ends with 1 if any adapter was refused.
    """
    items = find_items(source, _read_examples)
    before = {record["name"]: record for record in call("GET", url, "/admin/adapters", key=api_key)["data"]}

    def register(manifest: dict[str, Any], place: Path) -> dict[str, Any]:
        return _register(manifest, place, upload, url, api_key)

    with phases() as progress:
        outcomes = import_all(items, before, register, parallel, lambda done, total: progress("adapters", done, total))
    refused = [outcome for outcome in outcomes if outcome.result == "refused"]
    if as_json:
        print_json([asdict(outcome) for outcome in outcomes])
    else:
        for outcome in refused:
            typer.echo(f"{outcome.name}: {outcome.detail}", err=True)
        counts = Counter(outcome.result for outcome in outcomes)
        typer.echo(", ".join(f"{number} {result}" for result, number in sorted(counts.items())) + ".")
    if refused:
        raise typer.Exit(1)


@app.command("list")
def list_adapters(
    state: Annotated[str, typer.Option(help="Those in this state, or all.")] = "active",
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List adapters: the active ones, or those in another state."""
    records = call("GET", url, f"/admin/adapters?state={_quoted(state)}", key=api_key)["data"]
    if as_json:
        print_json(records)
        return
    _print_table(records)


@app.command()
def show(
    ref: Annotated[str, typer.Argument(help="name or name@version.")],
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show one adapter with its card and examples."""
    record = call("GET", url, f"/admin/adapters/{_quoted(ref)}", key=api_key)
    if as_json:
        print_json(record)
        return
    for key, value in record.items():
        if key == "examples":
            typer.echo("examples:")
            for text in value:
                typer.echo(f"  - {text}")
        else:
            typer.echo(f"{key}: {orjson.dumps(value).decode() if isinstance(value, (dict, list)) else value}")


@app.command()
def versions(
    name: Annotated[str, typer.Argument(help="Name of the expert.")],
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List all versions of an adapter, the newest first."""
    records = call("GET", url, f"/admin/adapters/{_quoted(name)}/versions", key=api_key)["data"]
    print_json(records) if as_json else _print_table(records)


@app.command()
def promote(
    ref: Annotated[str, typer.Argument(help="name@version.")],
    share: Annotated[
        float | None,
        typer.Option(
            help="Only this part of the conversations, 0 to 1: a canary. 0 only shows what it would get.", min=0, max=1
        ),
    ] = None,
    reason: Reason = "",
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Make a version the active one of its name; with --share its canary."""
    order = {"reason": reason} | ({} if share is None else {"share": share})
    _change(url, f"/admin/adapters/{_quoted(ref)}/promote", order, api_key, as_json)


@app.command()
def withdraw(
    ref: Annotated[str, typer.Argument(help="name, or name@version of the canary.")],
    reason: Reason = "",
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Take a canary's share of the traffic away."""
    _change(url, f"/admin/adapters/{_quoted(ref)}/withdraw", {"reason": reason}, api_key, as_json)


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="Name of the expert.")],
    reason: Reason = "",
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Make the version active again that was before the one that is."""
    _change(url, f"/admin/adapters/{_quoted(name)}/rollback", {"reason": reason}, api_key, as_json)


@app.command()
def history(
    name: Annotated[str | None, typer.Argument(help="name or name@version; without it, every change.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many changes.", min=1, max=1000)] = 50,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show who changed what, when and why, the newest first."""
    which = f"&name={_quoted(name)}" if name else ""
    entries = call("GET", url, f"/admin/audit?limit={limit}{which}", key=api_key)["data"]
    if as_json:
        print_json(entries)
        return
    table = Table("when", "who", "what", "subject", "from", "to", "why", box=None)
    for entry in entries:
        when = str(entry["at"])[:19].replace("T", " ")
        row = (when, entry["actor"], entry["action"], entry["subject"], entry["from"], entry["to"], entry["reason"])
        table.add_row(*(str(cell or "") for cell in row))
    Console().print(table)


@app.command()
def rm(
    ref: Annotated[str, typer.Argument(help="name: all its versions; or name@version.")],
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Remove an adapter: requests that use it end, then its files go. Its record stays."""
    record = call("DELETE", url, f"/admin/adapters/{_quoted(ref)}", key=api_key)
    print_json(record) if as_json else typer.echo(f"{record['id']} is removed.")


def _register(manifest: dict[str, Any], source: Path, upload: bool, url: str, api_key: str | None) -> dict[str, Any]:
    """Register the adapter in a folder or archive; the record."""
    if not source.exists():
        raise ClientError(f"{source} does not exist.", 2)
    if source.is_dir() and not upload:
        body = orjson.dumps(manifest | {"source": {"path": str(source.resolve())}})
        return dict(call("POST", url, "/admin/adapters", key=api_key, body=body))
    body, content_type = _multipart(manifest, source)
    return dict(call("POST", url, "/admin/adapters", key=api_key, body=body, content_type=content_type))


def _change(url: str, path: str, order: dict[str, Any], api_key: str | None, as_json: bool) -> None:
    record = call("POST", url, path, key=api_key, body=orjson.dumps(order))
    print_json(record) if as_json else typer.echo(f"{record['id']} is {_shown_state(record)}.")


def _shown_state(record: dict[str, Any]) -> str:
    if record["state"] == "canary":
        return f"a canary with {record['share']:.0%} of the conversations"
    return {"registered": "registered, and will be probed when an engine is ready"}.get(
        str(record["state"]), str(record["state"])
    )


def _print_table(records: list[dict[str, Any]]) -> None:
    table = Table("id", "state", "rank", "modules", "size", "examples", "description", box=None)
    for record in records:
        share = f" {record['share']:.0%}" if record["share"] is not None else ""
        modules = ", ".join(record["target_modules"])
        size = f"{record['size_bytes'] / 2**20:.1f} MiB"
        state = record["state"] + share
        row = (record["id"], state, record["rank"], modules, size, record["num_examples"])
        table.add_row(*map(str, row), record["card"]["description"])
    Console().print(table)


def _read_examples(path: Path) -> list[str]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ClientError(f"{path} cannot be read: {error}.", 2) from None
    examples = []
    for number, line in enumerate(filter(str.strip, lines), 1):
        if path.suffix != ".jsonl":
            examples.append(line)
            continue
        try:
            examples.append(orjson.loads(line)["prompt"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise ClientError(f"{path}, line {number}: not a JSON object with 'prompt'.", 2) from None
    return examples


def _multipart(manifest: dict[str, Any], source: Path) -> tuple[bytes, str]:
    names = ("adapter_config.json", "adapter_model.safetensors")
    files = [source / name for name in names if (source / name).exists()] if source.is_dir() else [source]
    boundary = uuid.uuid4().hex
    parts = [
        b'content-disposition: form-data; name="manifest"\r\ncontent-type: application/json\r\n\r\n'
        + orjson.dumps(manifest)
    ]
    for file in files:
        head = f'content-disposition: form-data; name="files"; filename="{_quoted(file.name)}"\r\n'
        parts.append(head.encode() + b"content-type: application/octet-stream\r\n\r\n" + file.read_bytes())
    edge = f"--{boundary}".encode()
    body = b"".join(edge + b"\r\n" + part + b"\r\n" for part in parts) + edge + b"--\r\n"
    return body, f"multipart/form-data; boundary={boundary}"


def _quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="@")
