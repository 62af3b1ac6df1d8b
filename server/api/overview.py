"""The admin API of the overview: experts with traffic and residency, replicas, and policies."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response

from adapters_registry.library import Library
from adapters_registry.records import AdapterRecord, utc_now
from adapters_registry.states import AdapterState
from server.api.guard import requires
from server.gateway import Gateway
from server.insights.overview import decisions_of, expert_rows, replica_rows, traffic_by_expert, trial_counts

NOT_SERVING = (AdapterState.REGISTERED, AdapterState.VALIDATING, AdapterState.REJECTED)
MAX_REJECTED = 100
"""Maximum number of versions out of service in the overview, newest first; the list of adapters has all."""

Limit = Annotated[int, Query(ge=1, le=5_000, description="Maximum number of versions, by name.")]


def overview_router(gateway: Gateway) -> APIRouter:
    """The route ``/admin/overview``."""
    guard = Depends(requires(gateway.authenticator, "admin"))
    router = APIRouter(prefix="/admin", tags=["operations"], dependencies=[guard])

    @router.get("/overview", summary="Show experts with state, traffic and residency, replicas, and policies")
    async def overview(response: Response, limit: Limit = 2_000) -> dict[str, Any]:
        response.headers["cache-control"] = "no-store"
        catalog = gateway.watcher.catalog
        records = [*catalog.experts.values(), *catalog.others.values(), *await _not_serving(gateway.library)]
        replicas = replica_rows(gateway.pool)
        counts = gateway.metrics.traffic
        traffic = traffic_by_expert(counts)
        rows = await asyncio.to_thread(expert_rows, records, traffic, trial_counts(counts), gateway.pool.replicas)
        missing = gateway.missing()
        policies = [each | decisions_of(counts, each["name"]) for each in gateway.policies.describe()]
        return {
            "object": "overview",
            "at": utc_now().isoformat(),
            "base": catalog.base_names[0],
            "ready": not missing,
            "missing": missing,
            "active": gateway.admission.num_active,
            "queued": gateway.admission.num_waiting,
            "num_versions": len(rows),
            "experts": rows[:limit],
            "traffic": {label: traffic[label].as_json() for label in ("base", "other") if label in traffic},
            "replicas": replicas,
            "policies": policies,
        }

    return router


async def _not_serving(library: Library) -> list[AdapterRecord]:
    found = sorted(await library.list(*NOT_SERVING), key=lambda record: record.updated_at, reverse=True)
    return found[:MAX_REJECTED]
