"""``moergate adapters``: the admin API on the command line."""

from __future__ import annotations

import re
import uuid
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from adapters_registry.disk.layout import ADAPTER_FILES
from server.cli import versions
from server.cli.bulk import find_items, import_all
from server.cli.client import DEFAULT_URL, AsJson, ClientError, Key, Url, call, explain, print_json
from server.cli.progress import phases
from server.cli.versions import print_versions, quoted, shown_state
from server.cli.watching import watch_job

app = typer.Typer(no_args_is_help=True)

_HUB = re.compile(r"hub:(?P<repo>[^@:/]+/[^@:/]+)(@(?P<revision>[^@:]+))?(:(?P<subfolder>[^@:]+))?")


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Name of the expert: a-z, 0-9, '_', '-' and '.'.")],
    source: Annotated[
        str,
        typer.Argument(
            help="A local PEFT folder or archive (zip, tar, tar.gz); or a source for the gateway to fetch: "
            "hub:org/name@revision, or a URL (https, s3, gs, az) of an archive, or of a folder (ending with '/')."
        ),
    ],
    description: Annotated[str, typer.Option(help="What the expert is good at.")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="A tag; keys can be confined by tags; repeat for more.")] = None,
    tenant: Annotated[
        str | None,
        typer.Option(help="Owner; keys of other tenants do not see the expert. Default: that of the version before."),
    ] = None,
    example: Annotated[
        list[str] | None, typer.Option(help="A prompt that the expert is good at; repeat for more.")
    ] = None,
    examples_file: Annotated[
        Path | None, typer.Option(help="A file with one example prompt a line, or JSONL with 'prompt'.")
    ] = None,
    max_examples: Annotated[
        int | None, typer.Option(help="Maximum number of examples; an evenly spaced sample is taken.", min=1)
    ] = None,
    publish: Annotated[
        str, typer.Option(help="State after the probes have passed: active, canary or ready.")
    ] = "active",
    share: Annotated[float, typer.Option(help="A canary's share of the conversations, 0 to 1.", min=0, max=1)] = 0.1,
    upload: Annotated[bool, typer.Option(help="Send the files, for a gateway on another machine.")] = False,
    sha256: Annotated[
        str | None, typer.Option(help="Digest of the fetched files, as 'moergate adapters digest' prints it.")
    ] = None,
    signature: Annotated[str | None, typer.Option(help="KEY:BASE64, a signature of that SHA-256.")] = None,
    credentials: Annotated[
        str | None, typer.Option(help="Name of a secret in the gateway's settings, for fetching.")
    ] = None,
    background: Annotated[bool, typer.Option("--background", help="Do not wait for the fetch.")] = False,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Register an adapter, or a new version of one; requests are routed to it seconds later."""
    examples = [*(example or []), *(_read_examples(examples_file) if examples_file else [])]
    if max_examples is not None:
        from routers.maths.even_sample import evenly_spaced

        examples = [examples[row] for row in evenly_spaced(len(examples), max_examples).tolist()]
    manifest: dict[str, Any] = {
        "name": name,
        "card": {"description": description, "tags": tag or [], "tenant": tenant},
        "examples": examples,
        "publish": {"to": publish, "share": share},
    }
    if remote := _remote(source):
        manifest["source"] = remote | _promises(sha256, signature, credentials)
        job = call("POST", url, "/admin/adapters", key=api_key, body=orjson.dumps(manifest))["job"]
        if background:
            shown = f"{job['id']} fetches {name}; GET /admin/jobs/{job['id']} shows it."
            print_json(job) if as_json else typer.echo(shown)
            return
        record = _fetched(job, name, url, api_key)
    elif sha256 or signature or credentials:
        raise ClientError("--sha256, --signature and --credentials apply only to sources that the gateway fetches.", 2)
    else:
        record = _register(manifest, Path(source), upload, url, api_key)
    if as_json:
        print_json(record)
    else:
        typer.echo(f"{record['id']} is {shown_state(record)}: rank {record['rank']}, {len(examples)} examples.")
        if not examples:
            typer.echo("The expert has no example prompts, so routers that learn from examples will not choose it.")


@app.command("import")
def import_adapters(
    source: Annotated[
        Path,
        typer.Argument(
            help="A folder with a sub-folder or archive for each adapter, or a list of manifests (JSON, YAML)."
        ),
    ],
    parallel: Annotated[int, typer.Option(help="Number of adapters registered at a time.", min=1, max=64)] = 8,
    upload: Annotated[bool, typer.Option(help="Send the files, for a gateway on another machine.")] = False,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Register many adapters at once. Repeating is safe: existing adapters stay unchanged.

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


@app.command()
def digest(
    path: Annotated[Path, typer.Argument(help="A PEFT folder, or an archive of one.")],
) -> None:
    """Print the SHA-256 that pins and signs a source: of an archive, or of a folder's two files."""
    from server.sources.proof import digest_of

    try:
        typer.echo(digest_of(path))
    except OSError as error:
        raise ClientError(f"{error.filename or path} cannot be read: {error.strerror}.", 2) from None


@app.command("list")
def list_adapters(
    state: Annotated[str, typer.Option(help="Show adapters in this state, or all.")] = "active",
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List adapters: the active ones, or those in another state."""
    records = call("GET", url, f"/admin/adapters?state={quoted(state)}", key=api_key)["data"]
    if as_json:
        print_json(records)
        return
    print_versions(records)


@app.command()
def show(
    ref: Annotated[str, typer.Argument(help="name or name@version.")],
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show one adapter with its card and examples."""
    record = call("GET", url, f"/admin/adapters/{quoted(ref)}", key=api_key)
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


for command in (versions.versions, versions.promote, versions.withdraw, versions.rollback, versions.history):
    app.command()(command)


@app.command()
def rm(
    ref: Annotated[str, typer.Argument(help="name: all its versions; or name@version.")],
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Remove an adapter: its running requests finish, then its files are deleted. Its record stays."""
    record = call("DELETE", url, f"/admin/adapters/{quoted(ref)}", key=api_key)
    print_json(record) if as_json else typer.echo(f"{record['id']} is removed.")


def _register(manifest: dict[str, Any], source: Path, upload: bool, url: str, api_key: str | None) -> dict[str, Any]:
    """Register the adapter in a folder or archive; returns its record."""
    if not source.exists():
        raise ClientError(f"{source} does not exist.", 2)
    if source.is_dir() and not upload:
        body = orjson.dumps(manifest | {"source": {"path": str(source.resolve())}})
        return dict(call("POST", url, "/admin/adapters", key=api_key, body=body))
    body, content_type = _multipart(manifest, source)
    return dict(call("POST", url, "/admin/adapters", key=api_key, body=body, content_type=content_type))


def _remote(source: str) -> dict[str, Any] | None:
    """Return the manifest's form of a source that the gateway fetches; None for a path."""
    if source.startswith("hub:"):
        match = _HUB.fullmatch(source)
        if match is None:
            raise ClientError(f"{source} is not a repository; write hub:org/name@revision or …@revision:subfolder.", 2)
        return {"hub": {key: value for key, value in match.groupdict().items() if value}}
    return {"url": source} if "://" in source else None


def _promises(sha256: str | None, signature: str | None, credentials: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {"sha256": sha256} if sha256 else {}
    if signature:
        key, colon, value = signature.partition(":")
        if not colon:
            raise ClientError("Write the signature as KEY:BASE64, with the name of the gateway's key.", 2)
        found["signature"] = {"key": key, "value": value}
    return found | ({"credentials": credentials} if credentials else {})


def _fetched(job: dict[str, Any], name: str, url: str, api_key: str | None) -> dict[str, Any]:
    """Wait for a job and return the record that it created. Raises ClientError if it failed."""
    stays = "Cancelled; the partial download is kept for a day, and the same command resumes it."
    ended = watch_job(job, url, api_key, stays, in_bytes=True)
    if ended["state"] != "succeeded":
        error = {"message": f"{name} was not registered: {ended['error'] or ended['state']}"}
        raise ClientError(explain({"error": error | {"problems": ended["problems"]}}, 0), 1)
    record: dict[str, Any] = ended["result"]
    return record


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
    files = [source / name for name in ADAPTER_FILES if (source / name).exists()] if source.is_dir() else [source]
    boundary = uuid.uuid4().hex
    parts = [
        b'content-disposition: form-data; name="manifest"\r\ncontent-type: application/json\r\n\r\n'
        + orjson.dumps(manifest)
    ]
    for file in files:
        head = f'content-disposition: form-data; name="files"; filename="{quoted(file.name)}"\r\n'
        parts.append(head.encode() + b"content-type: application/octet-stream\r\n\r\n" + file.read_bytes())
    edge = f"--{boundary}".encode()
    body = b"".join(edge + b"\r\n" + part + b"\r\n" for part in parts) + edge + b"--\r\n"
    return body, f"multipart/form-data; boundary={boundary}"
