"""Routes for callers that generate nothing: the list of models, and how a request would be routed."""

from __future__ import annotations

import time
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from server.access.auth import Authenticator
from server.api.guard import Caller, requires
from server.api.incoming import read_body, request_id_of
from server.endpoints import ENDPOINTS, EXPLANATION, Endpoint
from server.errors import BadRequest
from server.experts.watcher import LibraryWatcher
from server.planning.plan import Plan
from server.request.pipeline import Call, Pipeline

MAX_EXPLAINED = 50

ROUTED = {path: endpoint for path, endpoint in ENDPOINTS.items() if endpoint.is_routed}
"""Endpoints whose requests can be explained."""

EndpointPath = Annotated[
    str | None,
    Query(
        description=f"The endpoint that the body is meant for: {', '.join(ROUTED)}. By default, it is guessed from the "
        "body's fields."
    ),
]


def public_router(
    pipeline: Pipeline, watcher: LibraryWatcher, authenticator: Authenticator, max_body_bytes: int
) -> APIRouter:
    """Routes for holders of the scope ``infer``."""
    router = APIRouter(tags=["inference"], dependencies=[Depends(requires(authenticator, "infer"))])

    @router.get("/v1/models", summary="List the base, the policies and the experts that this key may use")
    async def list_models(caller: Caller) -> dict[str, Any]:
        return {"object": "list", "data": watcher.catalog.listing(caller)}

    @router.get("/v1/models/{model}", summary="Show one model")
    async def show_model(model: str, caller: Caller) -> dict[str, Any]:
        return watcher.catalog.entry(model, caller)

    @router.post("/v1/route", summary="Explain how a request would be routed, without generating")
    async def explain(request: Request, endpoint: EndpointPath = None) -> Response:
        headers = {name: value for name, value in request.headers.items()}

        async def body() -> bytes:
            return await read_body(headers, request.receive, max_body_bytes, setting="max_body_bytes")

        call = Call(_endpoint(endpoint), headers, body, request_id_of(headers), time.perf_counter())
        plan, times_ms = await pipeline.explain(call)
        return Response(
            orjson.dumps(explanation(plan, times_ms)),
            media_type="application/json",
            headers={"x-request-id": call.request_id},
        )

    return router


def _endpoint(path: str | None) -> Endpoint:
    """The endpoint with this path; without a path, one that is guessed from the body."""
    if path is None:
        return EXPLANATION
    if path not in ROUTED:
        raise BadRequest(f"'endpoint' must be one of {', '.join(ROUTED)}.", param="endpoint")
    return ROUTED[path]


def explanation(plan: Plan, times_ms: dict[str, float]) -> dict[str, Any]:
    """What ``POST /v1/route`` answers."""
    decision = plan.decision
    return {
        "policy": plan.policy_name,
        "recipe": str(plan.recipe),
        "confidence": None if decision is None else round(decision.confidence, 4),
        "abstained": decision.abstained if decision else False,
        "reason": decision.reason if decision else f"{plan.target.asked} was asked for by name",
        "candidates": [
            {"expert": c.expert_id, "score": round(c.score, 5)} for c in (decision.candidates if decision else ())
        ][:MAX_EXPLAINED],
        "neighbours": [
            {"expert": n.expert_id, "example": n.example, "similarity": round(n.similarity, 5)}
            for n in (decision.neighbours if decision else ())
        ][:MAX_EXPLAINED],
        "overhead_ms": {phase: round(value, 3) for phase, value in times_ms.items()},
    }
