"""The command line's client of a running gateway: plain HTTP with the standard library, errors as sentences."""

from __future__ import annotations

import http.client
import sys
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

import orjson
import typer
from rich.console import Console
from rich.table import Table

Url = Annotated[str, typer.Option("--url", envvar="MOERGATE_URL", help="The gateway's address.")]
Key = Annotated[
    str | None, typer.Option("--api-key", envvar="MOERGATE_API_KEY", help="An API key, if the gateway needs one.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT_S = 600.0
_WIDE = 250


class ClientError(Exception):
    """The gateway cannot be reached (exit code 3) or refuses (exit code 1)."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def call(
    method: str,
    url: str,
    path: str,
    *,
    key: str | None = None,
    body: bytes | None = None,
    content_type: str = "application/json",
) -> Any:
    """Send a request and return the parsed answer.

    Raises:
        ClientError: The gateway refused or did not answer; has the gateway's message and its list of problems.
    """
    parts = urlsplit(url if "//" in url else f"//{url}")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    headers: Mapping[str, str] = {"content-type": content_type} | ({"authorization": f"Bearer {key}"} if key else {})
    try:
        connection = kind(parts.hostname or "127.0.0.1", parts.port, timeout=TIMEOUT_S)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        payload = response.read()
        status = response.status
        connection.close()
    except (OSError, http.client.HTTPException) as error:
        raise ClientError(
            f"No gateway answers at {url} ({error}). Start one with 'moergate serve', or give its address with --url.",
            3,
        ) from None
    try:
        answer = orjson.loads(payload)
    except orjson.JSONDecodeError:
        raise ClientError(f"{url} does not answer like a Moergate gateway (status {status}).", 3) from None
    if status >= 400:
        raise ClientError(explain(answer, status), 1)
    return answer


def explain(answer: Any, status: int) -> str:
    """Format the gateway's error with every problem that it lists."""
    error = answer.get("error", {}) if isinstance(answer, dict) else {}
    message = str(error.get("message") or f"the gateway answers {status}")
    problems = error.get("problems", [])
    lines = [message.partition(". ")[0] + "." if problems else message]  # the text after the title repeats the problems
    for problem in problems:
        lines.append(f"  {problem['where']}: {problem['what']}\n    → {problem['fix']}")
    return "\n".join(lines)


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def print_table(table: Table) -> None:
    """Print a table; without a terminal, do not truncate it to a screen's width."""
    Console(width=None if sys.stdout.isatty() else _WIDE).print(table)
