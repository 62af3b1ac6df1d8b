"""Probes for orchestrators, which need no key, and metrics, which need one because they name experts."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from adapters_registry.errors import RegistryError
from server.access.auth import Authenticator
from server.api.guard import requires
from server.errors import GatewayError
from server.telemetry.metrics import Metrics


def health_router(authenticator: Authenticator, missing: Callable[[], dict[str, str]]) -> APIRouter:
    """Routes for orchestrators; they need no key.

    Args:
        authenticator: Decides who sees why a part is not ready.
        missing: What is not ready, by part; empty when everything is.
    """
    router = APIRouter(tags=["operations"])

    @router.get("/livez", summary="Show whether the process works")
    async def livez() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/health", summary="Like /livez, at vLLM's path and with an empty body", response_class=Response)
    async def health() -> Response:
        return Response()

    @router.get("/readyz", summary="Show whether requests can be answered, and what is missing")
    async def readyz(request: Request) -> JSONResponse:
        parts = missing()
        if parts and not await _may_see_details(authenticator, request):
            parts = dict.fromkeys(parts, "not ready; a key with the scope metrics or admin sees why")
        if parts:
            return JSONResponse({"status": "not ready", "missing": parts}, 503, headers={"retry-after": "2"})
        return JSONResponse({"status": "ready", "missing": {}})

    return router


def metrics_router(metrics: Metrics, authenticator: Authenticator) -> APIRouter:
    """The route ``/metrics``, for keys with the scope ``metrics`` or ``admin``."""
    guard = Depends(requires(authenticator, "metrics", "admin"))
    router = APIRouter(tags=["operations"], dependencies=[guard])

    @router.get("/metrics", summary="Show all metrics in Prometheus's format", response_class=Response)
    async def show_metrics() -> Response:
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    return router


async def _may_see_details(authenticator: Authenticator, request: Request) -> bool:
    try:
        await authenticator.authorise(request.headers, "metrics", "admin")
    except (GatewayError, RegistryError):
        return False
    return True
