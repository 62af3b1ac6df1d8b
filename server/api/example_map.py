"""The admin API of the map: the library's examples on a plane, and where other prompts fall on it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from routers.base import LibraryExpert
from server.access.auth import Authenticator
from server.api.guard import BodyOf, requires
from server.experts.watcher import LibraryWatcher
from server.insights.example_map import MapMaker

MAX_PLACED = 100
_MAX_BODY_BYTES = 4 << 20
_HEADERS = {"cache-control": "no-store"}


class PlaceRequest(BaseModel):
    """The body of ``POST /admin/map/place``."""

    model_config = ConfigDict(extra="forbid")

    texts: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=40_000)]],
        Field(min_length=1, max_length=MAX_PLACED, description="Prompts; they are embedded and not stored."),
    ]


Placing = Annotated[PlaceRequest, Depends(BodyOf(PlaceRequest, _MAX_BODY_BYTES))]


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
    return Response(orjson.dumps(value), headers=_HEADERS, media_type="application/json")
