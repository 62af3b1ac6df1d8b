"""Guards of routes: the scope that a caller's key needs, and the size and form of a request's body.

Every router declares `requires` as a dependency, so that none of its routes can forget it. FastAPI solves the guards
before it looks at a route's own parameters: a caller without a key learns nothing else about its request.
"""

# No "from __future__ import annotations" here: FastAPI cannot resolve string annotations of `BodyOf.__call__`.

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import BaseModel

from server.access.auth import Authenticator, Principal
from server.api.incoming import read_body, validated

MAX_INLINE_BYTES = 1 << 18
"""Larger bodies are parsed in a thread."""

_BEARER = HTTPBearer(scheme_name="bearer", auto_error=False)
_API_KEY = APIKeyHeader(scheme_name="x-api-key", name="x-api-key", auto_error=False)


def requires(authenticator: Authenticator, scope: str, *others: str) -> Callable[..., Awaitable[None]]:
    """A dependency that lets only keys with the scope, or one of the others, pass."""

    async def check(
        request: Request,
        _bearer: Annotated[object, Depends(_BEARER)],  # these two only document the ways to send a key
        _api_key: Annotated[object, Depends(_API_KEY)],
    ) -> None:
        request.state.principal = await authenticator.authorise(request.headers, scope, *others)

    return check


async def _principal(request: Request) -> Principal:
    principal: Principal = request.state.principal
    return principal


Caller = Annotated[Principal, Depends(_principal)]
"""The caller of a route whose router declares `requires`."""


class BodyOf:
    """A dependency that reads a request's JSON body under a size limit, and parses it.

    Args:
        model: The body's model, for validation and for the OpenAPI document.
        max_bytes: Maximum size.
        setting: The setting that `max_bytes` comes from, if it is one.
        parse: Parses the body instead of the model; raises BadRequest.
        optional: Whether the body may be absent.
    """

    def __init__(
        self,
        model: type[BaseModel],
        max_bytes: int,
        *,
        setting: str | None = None,
        parse: Callable[[bytes], Any] | None = None,
        optional: bool = False,
    ) -> None:
        self.model = model
        self.optional = optional
        self._max_bytes = max_bytes
        self._setting = setting
        self._parse = parse or (lambda raw: validated(model, raw))

    async def __call__(self, request: Request) -> Any:
        raw = await read_body(request.headers, request.receive, self._max_bytes, setting=self._setting)
        if not raw and self.optional:
            raw = b"{}"
        return self._parse(raw) if len(raw) <= MAX_INLINE_BYTES else await asyncio.to_thread(self._parse, raw)
