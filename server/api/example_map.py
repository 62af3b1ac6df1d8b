"""The admin API of the map: the library's examples on a plane, and where other prompts would fall."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from routers.base import LibraryExpert
from server.access.auth import Authenticator
from server.api.incoming import read_body, validated
from server.experts.watcher import LibraryWatcher
from server.insights.example_map import MapMaker

MAX_PLACED = 100
_MAX_BODY_BYTES = 4 << 20
_HEADERS = {"cache-control": "no-store"}


class PlaceOrder(BaseModel):
    """The body of ``POST /admin/map/place``."""

    model_config = ConfigDict(extra="forbid")

    texts: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=40_000)]],
        Field(min_length=1, max_length=MAX_PLACED, description="Prompts; they are embedded and not kept."),
    ]


def map_router(maker: MapMaker, watcher: LibraryWatcher, authenticator: Authenticator) -> APIRouter:
    """Routes under ``/admin/map``."""
    router = APIRouter(prefix="/admin/map", tags=["operations"])

    def experts() -> list[LibraryExpert]:
        return [LibraryExpert(record.expert_id, examples=tuple(record.examples)) for record in watcher.records]

    @router.get("", summary="Show the examples of the active experts on a plane")
    async def show_map(request: Request) -> Response:
        await authenticator.authorise(request.headers, "admin")
        made = await maker.current(experts())
        return await asyncio.to_thread(lambda: _json({"object": "map"} | made.as_json()))

    @router.post("/place", summary="Tell where prompts fall on the map, and which examples are nearest")
    async def place(request: Request) -> Response:
        await authenticator.authorise(request.headers, "admin")
        raw = await read_body(request.headers, request.receive, _MAX_BODY_BYTES)
        order = validated(PlaceOrder, raw, param="texts")
        made, placed = await maker.place(order.texts, experts())
        return _json({"object": "list", "version": made.version, "data": placed})

    return router


def _json(value: dict[str, Any]) -> Response:
    return Response(orjson.dumps(value), headers=_HEADERS, media_type="application/json")
