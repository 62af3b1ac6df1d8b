"""What every endpoint needs from a request: headers, a bounded body, a request id, and error responses."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping
from typing import TypeVar

import structlog
from pydantic import BaseModel, ValidationError
from starlette.responses import Response
from starlette.types import Receive, Scope

from server.errors import BadRequest, BodyTooLarge, ClientClosedRequest, GatewayError, error_body

Model = TypeVar("Model", bound=BaseModel)

_GOOD_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def headers_of(scope: Scope) -> dict[str, str]:
    """Headers with names in lower case; the first value of a repeated header counts."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))
    return headers


def request_id_of(headers: Mapping[str, str]) -> str:
    """The caller's ``x-request-id`` if it is short and harmless, else a new one, which need not be secret.

    New ids begin with the time in milliseconds, like UUIDs of version 7. Consecutive ids are neighbours in the decision
    log's index, and writing there costs a third of writing at random places.
    """
    given = headers.get("x-request-id")
    if given is not None and _GOOD_REQUEST_ID.fullmatch(given):
        return given
    return f"{time.time_ns() // 1_000_000:012x}{random.getrandbits(80):020x}"


def with_request_id(scope: Scope) -> Scope:
    """The same request with an id in its headers, so that all readers find the same id; log lines get it, too."""
    request_id = request_id_of(headers_of(scope))
    structlog.contextvars.bind_contextvars(request_id=request_id)
    others = [pair for pair in scope["headers"] if pair[0] != b"x-request-id"]
    return {**scope, "headers": [*others, (b"x-request-id", request_id.encode())]}


def validated(kind: type[Model], raw: bytes, *, advice: str = "") -> Model:
    """A body as its model.

    Raises:
        BadRequest: The body is not valid; the message lists the findings, then gives the advice.
    """
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        found = format_validation_error(error)
        where = error.errors()[0]["loc"]
        raise BadRequest(f"{found}. {advice}" if advice else found, param=str(where[0]) if where else None) from None


def format_validation_error(error: ValidationError) -> str:
    """The first five of pydantic's findings in one line, each with its location."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}" for e in error.errors()[:5])


async def read_body(
    headers: Mapping[str, str], receive: Receive, max_bytes: int, *, setting: str | None = None
) -> bytes:
    """The request's body.

    Args:
        headers: The request's headers, with names in lower case.
        receive: The ASGI channel of the request.
        max_bytes: Maximum size.
        setting: The setting that `max_bytes` comes from, if it is one.

    Raises:
        BodyTooLarge: The body, or its declared length, exceeds `max_bytes`.
        ClientClosedRequest: The client disconnected while sending the body.
    """
    declared = headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes, setting)
    parts: list[bytes] = []
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientClosedRequest("The caller closed the connection.")
        part = message.get("body", b"")
        num_bytes += len(part)
        if num_bytes > max_bytes:
            raise _too_large(max_bytes, setting)
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def error_response(error: GatewayError, request_id: str) -> Response:
    """The error in OpenAI's shape."""
    headers = {"x-request-id": request_id, **error.headers()}
    return Response(error_body(error), error.status, headers, media_type="application/json")


def _too_large(max_bytes: int, setting: str | None) -> BodyTooLarge:
    limit = f"this gateway's limit (setting {setting})" if setting else "the limit of this endpoint"
    return BodyTooLarge(f"The body is larger than {max_bytes / 2**20:g} MiB, {limit}. Send less.")
