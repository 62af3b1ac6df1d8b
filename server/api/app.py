"""The web application: all routes, the form of every error, and the OpenAPI document."""

from __future__ import annotations

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from adapters_registry.errors import RegistryError
from routers.errors import RouterError
from server.api.admin import admin_router
from server.api.console import console_router
from server.api.decisions import decisions_router, feedback_router
from server.api.health import health_router, metrics_router
from server.api.incoming import error_response, request_id_of, with_request_id
from server.api.inference import InferenceApp
from server.api.insights import leaderboard_router, map_router, overview_router
from server.api.lifecycle import lifecycle_router
from server.api.openapi import document
from server.api.policies import policies_router
from server.api.public import public_router
from server.endpoints import ENDPOINTS
from server.errors import BadRequest, GatewayError, MethodNotAllowed, NotFound, from_lower
from server.experts.registration import Registrar
from server.gateway import Gateway
from server.journal.feedback import FeedbackDesk

log = structlog.get_logger(__name__)


def build_app(gateway: Gateway) -> Edge:
    """The application of a gateway."""
    settings = gateway.settings
    app = FastAPI(
        title="Moergate",
        summary="One OpenAI-compatible endpoint over a library of LoRA experts.",
        docs_url="/docs",
        redoc_url=None,
    )
    app.include_router(health_router(gateway.authenticator, gateway.missing))
    app.include_router(metrics_router(gateway.metrics, gateway.authenticator))
    app.include_router(public_router(gateway.pipeline, gateway.watcher, gateway.authenticator, settings.max_body_bytes))
    registrar = Registrar(gateway.library, gateway.watcher, gateway.lifecycle, gateway.imports, settings)
    app.include_router(admin_router(registrar, gateway.library, gateway.authenticator, settings))
    app.include_router(lifecycle_router(gateway.lifecycle, gateway.shadow, gateway.library, gateway.authenticator))
    app.include_router(
        policies_router(gateway.policies, gateway.scores, gateway.watcher, gateway.authenticator, settings)
    )
    app.include_router(
        decisions_router(
            gateway.library, gateway.decisions, gateway.recent_decisions, gateway.watcher, gateway.authenticator
        )
    )
    desk = FeedbackDesk(gateway.library.feedback, gateway.decisions, gateway.metrics)
    app.include_router(feedback_router(desk, gateway.watcher, gateway.authenticator))
    app.include_router(console_router())
    app.include_router(overview_router(gateway))
    app.include_router(map_router(gateway.example_map, gateway.watcher, gateway.authenticator))
    app.include_router(leaderboard_router(gateway.leaderboard, gateway.authenticator))
    app.add_exception_handler(Exception, _on_error)
    for kind in (GatewayError, HTTPException, RequestValidationError, RegistryError, RouterError):
        app.add_exception_handler(kind, _on_error)
    document(app)
    inference = InferenceApp(gateway.pipeline, gateway.metrics, settings.max_body_bytes, gateway.tracing)
    return Edge(inference, app)


class Edge:
    """Passes the inference endpoints directly to their own application, and everything else to FastAPI."""

    def __init__(self, inference: InferenceApp, rest: FastAPI) -> None:
        self._inference = inference
        self.rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in ENDPOINTS and scope["method"] == "POST":
            await self._inference(scope, receive, send)
        else:
            await self.rest(with_request_id(scope) if scope["type"] == "http" else scope, receive, send)


async def _on_error(request: Request, error: Exception) -> Response:
    request_id = request_id_of(request.headers)
    known = _from_framework(error, request) or from_lower(error)
    if known.status == 500:
        log.exception("request failed", request_id=request_id, endpoint=request.url.path, exc_info=error)
    return error_response(known, request_id)


def _from_framework(error: Exception, request: Request) -> GatewayError | None:
    if isinstance(error, RequestValidationError):
        return BadRequest("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()))
    if isinstance(error, HTTPException):
        if error.status_code == 404:
            if request.url.path in ENDPOINTS:
                return MethodNotAllowed(f"{request.method} is not allowed here; use POST.")
            return NotFound(
                f"There is no {request.method} {request.url.path[:200]}; GET /openapi.json lists all endpoints."
            )
        if error.status_code == 405:
            return MethodNotAllowed(f"{request.method} is not allowed here.")
        return BadRequest(str(error.detail))
    return None
