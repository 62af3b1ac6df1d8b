"""The admin API of the console's views: the overview, the map of examples, and the leaderboard."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from adapters_registry.library import Library
from adapters_registry.records import AdapterRecord, utc_now
from adapters_registry.states import AdapterState
from routers.base import LibraryExpert
from server.access.auth import Authenticator
from server.api.guard import BodyOf, Caller, requires
from server.api.incoming import validated
from server.experts.watcher import LibraryWatcher
from server.gateway import Gateway
from server.insights.example_map import MapMaker
from server.insights.leaderboard import MAX_LEADERBOARD_BYTES, Leaderboard, LeaderboardStore
from server.insights.overview import decisions_of, expert_rows, replica_rows, traffic_by_expert, trial_counts

NOT_SERVING = (AdapterState.REGISTERED, AdapterState.VALIDATING, AdapterState.REJECTED)
MAX_REJECTED = 100
"""Maximum number of versions out of service in the overview, newest first; the list of adapters has all."""

Limit = Annotated[int, Query(ge=1, le=5_000, description="Maximum number of versions, by name.")]

MAX_PLACED = 100
_MAX_PLACED_BYTES = 4 << 20
_NO_STORE = {"cache-control": "no-store"}

NOTHING_PUBLISHED = (
    "Nothing has been published yet. Compare policies on your tasks: moergate compare --tasks DIR --publish"
)
LEADERBOARD_FORM = "Send the leaderboard.json that moergate compare has written."


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


class PlaceRequest(BaseModel):
    """The body of ``POST /admin/map/place``."""

    model_config = ConfigDict(extra="forbid")

    texts: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=40_000)]],
        Field(min_length=1, max_length=MAX_PLACED, description="Prompts; they are embedded and not stored."),
    ]


Placing = Annotated[PlaceRequest, Depends(BodyOf(PlaceRequest, _MAX_PLACED_BYTES))]


def map_router(maker: MapMaker, watcher: LibraryWatcher, authenticator: Authenticator) -> APIRouter:
    """Routes under ``/admin/map``."""
    guard = Depends(requires(authenticator, "admin"))
    router = APIRouter(prefix="/admin/map", tags=["operations"], dependencies=[guard])

    def experts() -> list[LibraryExpert]:
        return [LibraryExpert(record.expert_id, examples=tuple(record.examples)) for record in watcher.records]

    @router.get("", summary="Show the examples of the active experts on a plane")
    async def show_map() -> Response:
        made = await maker.current(experts())
        return await asyncio.to_thread(lambda: _json({"object": "map"} | made.as_json()))

    @router.post("/place", summary="Show where prompts fall on the map, and which examples are nearest")
    async def place(body: Placing) -> Response:
        made, placed = await maker.place(body.texts, experts())
        return _json({"object": "list", "version": made.version, "data": placed})

    return router


def _json(value: dict[str, Any]) -> Response:
    return Response(orjson.dumps(value), headers=_NO_STORE, media_type="application/json")


def _parse_leaderboard(raw: bytes) -> Leaderboard:
    return validated(Leaderboard, raw, advice=LEADERBOARD_FORM)


Published = Annotated[Leaderboard, Depends(BodyOf(Leaderboard, MAX_LEADERBOARD_BYTES, parse=_parse_leaderboard))]


def leaderboard_router(store: LeaderboardStore, authenticator: Authenticator) -> APIRouter:
    """The routes at ``/admin/leaderboard``."""
    router = APIRouter(prefix="/admin", tags=["policies"], dependencies=[Depends(requires(authenticator, "admin"))])

    @router.get("/leaderboard", summary="Show the newest published comparison of policies")
    async def show_leaderboard(response: Response) -> dict[str, Any]:
        response.headers["cache-control"] = "no-store"
        found = await asyncio.to_thread(store.get)
        if found is None:
            return {"object": "leaderboard", "leaderboard": None, "advice": NOTHING_PUBLISHED}
        return {"object": "leaderboard", **found.model_dump(mode="json")}

    @router.put("/leaderboard", summary="Publish a comparison in place of the previous one")
    async def publish(leaderboard: Published, caller: Caller) -> dict[str, Any]:
        published = await asyncio.to_thread(store.put, leaderboard, caller.key_id)
        return {
            "object": "leaderboard",
            "published_at": published.published_at.isoformat(),
            "num_rows": len(leaderboard.rows),
        }

    return router
