"""``moergate adapters``: the admin API on the command line."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from server.cli.client import DEFAULT_URL, AsJson, ClientError, Key, Url, call, print_json

app = typer.Typer(no_args_is_help=True)


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
    }
    if not source.exists():
        raise ClientError(f"{source} does not exist.", 2)
    if source.is_dir() and not upload:
        manifest["source"] = {"path": str(source.resolve())}
        record = call("POST", url, "/admin/adapters", key=api_key, body=orjson.dumps(manifest))
    else:
        body, content_type = _multipart(manifest, source)
        record = call("POST", url, "/admin/adapters", key=api_key, body=body, content_type=content_type)
    if as_json:
        print_json(record)
    else:
        typer.echo(f"{record['id']} is registered: rank {record['rank']}, {len(examples)} examples.")
        if not examples:
            typer.echo("It has no example prompts, so routers that learn from examples will not choose it.")


@app.command("list")
def list_adapters(url: Url = DEFAULT_URL, api_key: Key = None, as_json: AsJson = False) -> None:
    """List the active adapters."""
    records = call("GET", url, "/admin/adapters", key=api_key)["data"]
    if as_json:
        print_json(records)
        return
    table = Table("id", "rank", "modules", "size", "examples", "description", box=None)
    for record in records:
        modules = ", ".join(record["target_modules"])
        size = f"{record['size_bytes'] / 2**20:.1f} MiB"
        row = (record["id"], record["rank"], modules, size, record["num_examples"], record["card"]["description"])
        table.add_row(*map(str, row))
    Console().print(table)


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
def rm(
    ref: Annotated[str, typer.Argument(help="name or name@version.")],
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Remove an adapter: requests that use it end, then its files go."""
    record = call("DELETE", url, f"/admin/adapters/{_quoted(ref)}", key=api_key)
    print_json(record) if as_json else typer.echo(f"{record['id']} is removed.")


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
