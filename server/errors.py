"""All errors that a caller can get, and their form on the wire.

GatewayError
├── BadRequest               400  the body is not JSON, or a field has the wrong type
│   └── AdapterRefused       400  an adapter, archive or manifest that cannot be taken (with a list of problems)
├── AuthenticationFailed     401  no key, or one that is unknown, revoked or expired
├── PermissionDenied         403  the key lacks the scope
├── NotFound                 404  no such path or record
│   └── ModelNotFound        404  no such base, expert or policy (with the nearest names)
├── MethodNotAllowed         405  the path exists, but not for this method
├── Conflict                 409  the name or content is in use by something else
│   └── JobCancelled         409  the job was cancelled (`server.jobs`)
├── BodyTooLarge             413  more bytes than the limit
├── TooManyRequests          429  the queue is full, or the wait in it was too long
├── RateLimited              429  the key's limit of requests or tokens a minute, or of concurrent requests
├── QuotaExceeded            429  the key's budget is used up
├── ClientClosedRequest      499  the caller hung up (seen in logs and metrics only)
├── InternalError            500  a fault in the gateway
├── EngineLost               502  the engine closed the connection
├── Unavailable              503  engine, library or database is not ready yet
├── EngineTimeout            504  the engine did not answer in time
└── StorageFailed            507  no room, or no right to write

Every error becomes OpenAI's ``{"error": {"message", "type", "param", "code"}}`` in one place, `error_body`. Errors of
lower packages are mapped by type in `from_lower`; a test checks that none is forgotten. This module does not know
FastAPI.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any, ClassVar

import orjson

from adapters_registry import errors as registry_errors
from routers import errors as router_errors


class GatewayError(Exception):
    """Root of the tree. `message` says what is wrong and what to do, and never reveals what the caller may not see."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
        problems: tuple[dict[str, str], ...] = (),
        more_headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.problems = problems
        self._more_headers = dict(more_headers or {})

    def headers(self) -> dict[str, str]:
        """Response headers of this error."""
        waits = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        return waits | self._more_headers


class BadRequest(GatewayError):
    """The request cannot be understood."""

    status = 400
    type = "invalid_request_error"
    code = "bad_request"


class AdapterRefused(BadRequest):
    """An adapter, archive or manifest was refused; `problems` lists ``{where, what, fix}``."""

    code = "adapter_refused"


class AuthenticationFailed(GatewayError):
    """The key is missing, unknown, revoked or expired."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"

    def headers(self) -> dict[str, str]:
        """Say how to authenticate, as RFC 9110 asks."""
        return {"www-authenticate": "Bearer"}


class PermissionDenied(GatewayError):
    """The key is valid but lacks the scope for this."""

    status = 403
    type = "permission_error"
    code = "permission_denied"


class NotFound(GatewayError):
    """No such path or record."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(NotFound):
    """No base, expert or policy of that name is visible to this key."""

    code = "model_not_found"


class MethodNotAllowed(GatewayError):
    """The path exists, but not for this method."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class Conflict(GatewayError):
    """The name or the content is already used in a way that excludes this request."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"


class BodyTooLarge(GatewayError):
    """The body exceeds the limit."""

    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class TooManyRequests(GatewayError):
    """The queue is full, or the wait in it was too long."""

    status = 429
    type = "rate_limit_error"
    code = "overloaded"


class RateLimited(GatewayError):
    """The key reached its limit of requests or tokens a minute, or of concurrent requests."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class QuotaExceeded(GatewayError):
    """The key's budget for the day or month is used up."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"


class ClientClosedRequest(GatewayError):
    """The caller disconnected; only logs and metrics show this."""

    status = 499
    type = "invalid_request_error"
    code = "client_closed_request"


class InternalError(GatewayError):
    """A fault in the gateway; the log has the details under the request id."""

    status = 500
    code = "internal_error"


class EngineLost(GatewayError):
    """The engine closed the connection or sent an invalid answer."""

    status = 502
    code = "engine_lost"


class Unavailable(GatewayError):
    """A part that this request needs is not ready; retry."""

    status = 503
    code = "unavailable"


class EngineTimeout(GatewayError):
    """The engine did not answer within the limit."""

    status = 504
    code = "engine_timeout"


class StorageFailed(GatewayError):
    """The library's folder is full or cannot be written."""

    status = 507
    code = "storage_failed"


def error_body(error: GatewayError) -> bytes:
    """Return the JSON for the caller, in OpenAI's shape, with `problems` as the only extension."""
    payload: dict[str, Any] = {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }
    if error.problems:
        payload["problems"] = list(error.problems)
    return orjson.dumps({"error": payload})


_LOWER: dict[type[Exception], type[GatewayError]] = {
    registry_errors.BadInput: AdapterRefused,
    registry_errors.AdapterNotFound: NotFound,
    registry_errors.KeyNotFound: NotFound,
    registry_errors.NameTaken: Conflict,
    registry_errors.CannotMerge: BadRequest,
    registry_errors.BadBackup: BadRequest,
    registry_errors.NotEmpty: Conflict,
    registry_errors.NotRetired: Conflict,
    registry_errors.WrongState: Conflict,
    registry_errors.StorageFull: StorageFailed,
    registry_errors.StorageUnwritable: StorageFailed,
    registry_errors.DatabaseBusy: Unavailable,
    registry_errors.DatabaseBroken: InternalError,
    registry_errors.RegistryError: InternalError,
    router_errors.UnknownRouter: BadRequest,
    router_errors.BadRouterConfig: BadRequest,
    router_errors.BadSamples: BadRequest,
    router_errors.UnknownMetric: BadRequest,
    router_errors.NotFittable: Conflict,
    router_errors.BadArtefact: InternalError,
    router_errors.RouterError: InternalError,
    router_errors.EmbedderBusy: TooManyRequests,
    router_errors.EmbedderError: InternalError,
}


def from_lower(error: Exception) -> GatewayError:
    """Map any exception to the error for the caller, by type only, never by message."""
    if isinstance(error, GatewayError):
        return error
    for kind in type(error).__mro__:
        mapped = _LOWER.get(kind)
        if mapped is not None:
            retry_after_s = 1 if mapped in (Unavailable, TooManyRequests) else None
            problems = tuple({"where": p.where, "what": p.what, "fix": p.fix} for p in getattr(error, "problems", ()))
            return mapped(str(error), retry_after_s=retry_after_s, problems=problems)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        return StorageFailed(f"The gateway's folder cannot be written: {error.strerror}. Make room, then try again.")
    return InternalError("The gateway failed on this request; the log has the details under its request id.")
