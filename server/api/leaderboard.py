"""The admin API of the leaderboard: the newest comparison that was published."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from server.access.auth import Authenticator
from server.api.incoming import read_body, told
from server.errors import BadRequest
from server.insights.leaderboard import MAX_LEADERBOARD_BYTES, Leaderboard, LeaderboardStore

ADVICE = "Nothing was published yet. Compare policies on your tasks: moergate compare --tasks DIR --publish"


def leaderboard_router(store: LeaderboardStore, authenticator: Authenticator) -> APIRouter:
    """The route ``/admin/leaderboard``."""
    router = APIRouter(prefix="/admin", tags=["policies"])

    @router.get("/leaderboard", summary="Show the newest published comparison of policies")
    async def show_leaderboard(request: Request, response: Response) -> dict[str, Any]:
        await authenticator.authorise(request.headers, "admin")
        response.headers["cache-control"] = "no-store"
        found = await asyncio.to_thread(store.get)
        if found is None:
            return {"object": "leaderboard", "leaderboard": None, "advice": ADVICE}
        return {"object": "leaderboard", **found.model_dump(mode="json")}

    @router.put("/leaderboard", summary="Publish a comparison instead of the one before")
    async def publish(request: Request) -> dict[str, Any]:
        principal = await authenticator.authorise(request.headers, "admin")
        raw = await read_body(request.headers, request.receive, MAX_LEADERBOARD_BYTES)
        try:
            leaderboard = Leaderboard.model_validate_json(raw)
        except ValidationError as error:
            raise BadRequest(f"{told(error)}. Send the leaderboard.json that moergate compare has written.") from None
        kept = await asyncio.to_thread(store.put, leaderboard, principal.key_id)
        return {
            "object": "leaderboard",
            "published_at": kept.published_at.isoformat(),
            "num_rows": len(leaderboard.rows),
        }

    return router
