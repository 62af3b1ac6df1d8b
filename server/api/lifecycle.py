"""The admin API of versions: promote, withdraw, roll back, remove, and what happened. Needs the scope ``admin``."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from adapters_registry.library import Library
from adapters_registry.records import AuditEntry, Change
from server.access.auth import Authenticator
from server.api.admin import show
from server.api.incoming import read_body, validated
from server.experts.lifecycle import Lifecycle
from server.planning.shadow import Shadow

MAX_AUDIT_ENTRIES = 1000
_MAX_ORDER_BYTES = 1 << 16

Order = TypeVar("Order", bound="ChangeOrder")
Limit = Annotated[int, Query(ge=1, le=MAX_AUDIT_ENTRIES)]
Before = Annotated[int | None, Query(ge=1, le=2**62)]


class ChangeOrder(BaseModel):
    """The body of ``withdraw`` and ``rollback``; it may be absent."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field("", max_length=2000)


class PromoteOrder(ChangeOrder):
    """The body of ``promote``: without a share the version becomes active, with one it is the name's canary."""

    share: float | None = Field(None, ge=0, le=1)


def lifecycle_router(lifecycle: Lifecycle, shadow: Shadow, library: Library, authenticator: Authenticator) -> APIRouter:
    """Routes under ``/admin`` that change a version's state, and the audit."""
    router = APIRouter(prefix="/admin", tags=["admin"])

    async def ordered(request: Request, kind: type[Order]) -> tuple[Order, Change]:
        principal = await authenticator.authorise(request.headers, "admin")
        raw = await read_body(request.headers, request.receive, _MAX_ORDER_BYTES)
        order = validated(kind, raw or b"{}")
        return order, Change(principal.key_id, order.reason)

    @router.post("/adapters/{ref}/promote", summary="Make a version active, or with a share the canary of its name")
    async def promote(ref: str, request: Request) -> dict[str, Any]:
        order, change = await ordered(request, PromoteOrder)
        return show(await lifecycle.promote(ref, order.share, change))

    @router.post("/adapters/{ref}/withdraw", summary="Take a canary's share of the traffic away")
    async def withdraw(ref: str, request: Request) -> dict[str, Any]:
        _, change = await ordered(request, ChangeOrder)
        return show(await lifecycle.withdraw(ref, change))

    @router.post("/adapters/{name}/rollback", summary="Make the version active again that was before")
    async def rollback(name: str, request: Request) -> dict[str, Any]:
        _, change = await ordered(request, ChangeOrder)
        return show(await lifecycle.rollback(name, change))

    @router.delete("/adapters/{ref}", summary="Remove an adapter: running requests end, then its files go")
    async def remove(ref: str, request: Request) -> dict[str, Any]:
        principal = await authenticator.authorise(request.headers, "admin")
        return show(await lifecycle.remove(ref, Change(principal.key_id, "removed")))

    @router.get("/adapters/{name}/versions", summary="All versions of an adapter, the newest first")
    async def versions(name: str, request: Request) -> dict[str, Any]:
        await authenticator.authorise(request.headers, "admin")
        found = await library.versions(name)
        if not found:
            await library.find(name)  # says so
        return {"object": "list", "data": [show(record) for record in found]}

    @router.get("/shadow", summary="What the versions in the shadow would get and lose, were they offered")
    async def in_the_shadow(request: Request) -> dict[str, Any]:
        await authenticator.authorise(request.headers, "admin")
        data = [{"id": expert_id, **tally.as_json()} for expert_id, tally in sorted(shadow.tallies.items())]
        return {"object": "list", "data": data}

    @router.get("/audit", summary="Who changed what, when and why: the newest first")
    async def audit(
        request: Request, name: str | None = None, limit: Limit = 100, before: Before = None
    ) -> dict[str, Any]:
        await authenticator.authorise(request.headers, "admin")
        entries = await library.audit(name, limit=limit, before=before)
        return {"object": "list", "data": [_entry(entry) for entry in entries]}

    return router


def _entry(entry: AuditEntry) -> dict[str, Any]:
    return {
        "number": entry.number,
        "at": entry.at.isoformat(),
        "actor": entry.actor,
        "action": entry.action,
        "subject": entry.subject,
        "from": entry.from_state,
        "to": entry.to_state,
        "reason": entry.reason,
    }
