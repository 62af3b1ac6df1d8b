"""The admin API of the leaderboard: the newest comparison that was published."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from server.access.auth import Authenticator
from server.api.guard import BodyOf, Caller, requires
from server.api.incoming import validated
from server.insights.leaderboard import MAX_LEADERBOARD_BYTES, Leaderboard, LeaderboardStore

ADVICE = "Nothing has been published yet. Compare policies on your tasks: moergate compare --tasks DIR --publish"
FORM = "Send the leaderboard.json that moergate compare has written."


def _parse(raw: bytes) -> Leaderboard:
    return validated(Leaderboard, raw, advice=FORM)


Published = Annotated[Leaderboard, Depends(BodyOf(Leaderboard, MAX_LEADERBOARD_BYTES, parse=_parse))]


def leaderboard_router(store: LeaderboardStore, authenticator: Authenticator) -> APIRouter:
    """The routes at ``/admin/leaderboard``."""
    router = APIRouter(prefix="/admin", tags=["policies"], dependencies=[Depends(requires(authenticator, "admin"))])

    @router.get("/leaderboard", summary="Show the newest published comparison of policies")
    async def show_leaderboard(response: Response) -> dict[str, Any]:
        response.headers["cache-control"] = "no-store"
        found = await asyncio.to_thread(store.get)
        if found is None:
            return {"object": "leaderboard", "leaderboard": None, "advice": ADVICE}
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
