"""Probes, which need no key, and metrics, which do: they name experts."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from adapters_registry.errors import RegistryError
from server.access.auth import Authenticator
from server.errors import GatewayError
from server.telemetry.metrics import Metrics


def health_router(metrics: Metrics, authenticator: Authenticator, missing: Callable[[], dict[str, str]]) -> APIRouter:
    """Routes for orchestrators and Prometheus.

    Args:
        metrics: What ``/metrics`` shows to keys with the scope ``metrics`` or ``admin``.
        authenticator: Knows the keys.
        missing: What is not ready, by part; empty when everything is.
    """
    router = APIRouter(tags=["operations"])

    @router.get("/livez", summary="Whether the process works")
    async def livez() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/health", summary="As /livez, where vLLM's tools look for it; an empty body", response_class=Response)
    async def health() -> Response:
        return Response()

    @router.get("/readyz", summary="Whether requests can be answered, and what is missing")
    async def readyz(request: Request) -> JSONResponse:
        parts = missing()
        if parts and not await _may_see_details(authenticator, request):
            parts = dict.fromkeys(parts, "not ready; a key with the scope metrics or admin sees why")
        if parts:
            return JSONResponse({"status": "not ready", "missing": parts}, 503, headers={"retry-after": "2"})
        return JSONResponse({"status": "ready", "missing": {}})

    @router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
    async def show_metrics(request: Request) -> Response:
        await authenticator.authorise(request.headers, "metrics", "admin")
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    return router


async def _may_see_details(authenticator: Authenticator, request: Request) -> bool:
    try:
        await authenticator.authorise(request.headers, "metrics", "admin")
    except (GatewayError, RegistryError):
        return False
    return True
