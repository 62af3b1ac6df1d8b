"""Guards: which key passes, what is checked first, and how bodies are bounded and parsed."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel

from adapters_registry.keys import new_key
from adapters_registry.stores.database import Database
from adapters_registry.stores.sql_keys import SqlKeyStore
from server.access.auth import Authenticator
from server.api.guard import MAX_INLINE_BYTES, BodyOf, Caller, requires
from server.api.incoming import error_response
from server.errors import BadRequest, GatewayError

MAX_BYTES = 2 * MAX_INLINE_BYTES


class Note(BaseModel):
    text: str = ""


def parse_lines(raw: bytes) -> list[str]:
    if b"\n" not in raw:
        raise BadRequest("Send lines.")
    return raw.decode().split("\n")


Sent = Annotated[Note, Depends(BodyOf(Note, MAX_BYTES, setting="max_body_bytes"))]
SentOrNot = Annotated[Note, Depends(BodyOf(Note, 10, optional=True))]
Lines = Annotated[list[str], Depends(BodyOf(Note, MAX_BYTES, parse=parse_lines))]


async def refuse(_request: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    return error_response(error, "r")


def application(authenticator: Authenticator) -> FastAPI:
    router = APIRouter(prefix="/admin", dependencies=[Depends(requires(authenticator, "admin", "metrics"))])

    @router.get("/me")
    async def me(caller: Caller, _number: Annotated[int, Query()]) -> str:
        return caller.name

    @router.post("/sent")
    async def sent(body: Sent) -> int:
        return len(body.text)

    @router.post("/sent-or-not")
    async def sent_or_not(body: SentOrNot) -> str:
        return body.text

    @router.post("/lines")
    async def lines(body: Lines) -> int:
        return len(body)

    app = FastAPI()
    app.include_router(router)
    app.add_exception_handler(GatewayError, refuse)
    return app


@pytest.fixture
async def clients(tmp_path: Path) -> AsyncIterator[dict[str, httpx.AsyncClient]]:
    """A client for a key of each scope, by scope, and `nobody` without a key."""
    database = Database(f"sqlite:///{tmp_path}/keys.sqlite3")
    await database.migrate()
    keys = SqlKeyStore(database)
    app = application(Authenticator(keys))
    headers: dict[str, dict[str, str]] = {"nobody": {}}
    for scope in ("admin", "metrics", "infer"):
        record, secret = new_key(f"key-{scope}", scopes={scope})
        await keys.add(record)
        headers[scope] = {"authorization": f"Bearer {secret}"}
    async with contextlib.AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(
                httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", headers=each)
            )
            for name, each in headers.items()
        }
    await database.close()


@pytest.mark.parametrize(("who", "status"), [("nobody", 401), ("infer", 403), ("admin", 200), ("metrics", 200)])
async def test_only_keys_with_a_scope_of_the_router_pass(
    clients: dict[str, httpx.AsyncClient], who: str, status: int
) -> None:
    answer = await clients[who].get("/admin/me?_number=1")
    assert answer.status_code == status
    if status == 200:
        assert answer.json() == f"key-{who}"


@pytest.mark.parametrize("path", ["me", "sent", "sent-or-not", "lines"])
async def test_a_key_is_checked_before_parameters_and_body(clients: dict[str, httpx.AsyncClient], path: str) -> None:
    method = "GET" if path == "me" else "POST"
    answer = await clients["nobody"].request(method, f"/admin/{path}?_number=x", content=b"x" * (MAX_BYTES + 1))
    assert answer.status_code == 401


@pytest.mark.parametrize(
    ("path", "content", "status", "found"),
    [
        ("sent", b'{"text": "abc"}', 200, 3),
        ("sent", b'{"text": "%s"}' % (b"x" * (MAX_INLINE_BYTES + 1)), 200, MAX_INLINE_BYTES + 1),
        ("sent", b'{"text": "%s"}' % (b"x" * MAX_BYTES), 413, "0.5 MiB, this gateway's limit (setting max_body_bytes)"),
        ("sent", b"", 400, "body: Invalid JSON"),
        ("sent", b'{"text": 1}', 400, "text: Input should be a valid string"),
        ("sent-or-not", b"", 200, ""),
        ("sent-or-not", b'{"text": "too long"}', 413, "the limit of this endpoint"),
        ("lines", b"a\nb", 200, 2),
        ("lines", b"a" * (MAX_INLINE_BYTES + 1), 400, "Send lines."),
    ],
)
async def test_bodies_are_bounded_and_parsed(
    clients: dict[str, httpx.AsyncClient], path: str, content: bytes, status: int, found: Any
) -> None:
    answer = await clients["admin"].post(f"/admin/{path}", content=content)
    assert answer.status_code == status
    if status == 200:
        assert answer.json() == found
    else:
        assert found in answer.json()["error"]["message"]


async def test_the_first_bad_field_is_named(clients: dict[str, httpx.AsyncClient]) -> None:
    errors = [
        (await clients["admin"].post("/admin/sent", content=each)).json()["error"] for each in (b'{"text":1}', b"")
    ]
    assert [error["param"] for error in errors] == ["text", None]
