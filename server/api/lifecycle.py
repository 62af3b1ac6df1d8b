"""The admin API of versions: promote, withdraw, roll back and remove them, and list what was changed."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from adapters_registry.library import Library
from adapters_registry.records import AuditEntry, Change
from server.access.auth import Authenticator
from server.api.guard import BodyOf, Caller, requires
from server.experts.lifecycle import Lifecycle
from server.experts.registration import describe_adapter
from server.planning.shadow import Shadow

MAX_AUDIT_ENTRIES = 1000
_MAX_BODY_BYTES = 1 << 16


class ChangeRequest(BaseModel):
    """The body of ``withdraw`` and ``rollback``; it may be absent."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field("", max_length=2000)


class PromoteRequest(ChangeRequest):
    """The body of ``promote``: without a share the version becomes active, with one it is the name's canary."""

    share: float | None = Field(None, ge=0, le=1)


Changing = Annotated[ChangeRequest, Depends(BodyOf(ChangeRequest, _MAX_BODY_BYTES, optional=True))]
Promoting = Annotated[PromoteRequest, Depends(BodyOf(PromoteRequest, _MAX_BODY_BYTES, optional=True))]
Limit = Annotated[int, Query(ge=1, le=MAX_AUDIT_ENTRIES)]
Before = Annotated[int | None, Query(ge=1, le=2**62)]


def lifecycle_router(lifecycle: Lifecycle, shadow: Shadow, library: Library, authenticator: Authenticator) -> APIRouter:
    """Routes under ``/admin`` that change a version's state, and the audit."""
    router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(requires(authenticator, "admin"))])

    @router.post("/adapters/{ref}/promote", summary="Make a version active, or with a share the canary of its name")
    async def promote(ref: str, body: Promoting, caller: Caller) -> dict[str, Any]:
        return describe_adapter(await lifecycle.promote(ref, body.share, Change(caller.key_id, body.reason)))

    @router.post("/adapters/{ref}/withdraw", summary="Take away a canary's share of the traffic")
    async def withdraw(ref: str, body: Changing, caller: Caller) -> dict[str, Any]:
        return describe_adapter(await lifecycle.withdraw(ref, Change(caller.key_id, body.reason)))

    @router.post("/adapters/{name}/rollback", summary="Make the previously active version active again")
    async def rollback(name: str, body: Changing, caller: Caller) -> dict[str, Any]:
        return describe_adapter(await lifecycle.rollback(name, Change(caller.key_id, body.reason)))

    @router.delete("/adapters/{ref}", summary="Remove an adapter: running requests end, then its files are deleted")
    async def remove(ref: str, caller: Caller) -> dict[str, Any]:
        return describe_adapter(await lifecycle.remove(ref, Change(caller.key_id, "removed")))

    @router.get("/adapters/{name}/versions", summary="List all versions of an adapter, newest first")
    async def versions(name: str) -> dict[str, Any]:
        found = await library.versions(name)
        if not found:
            await library.find(name)  # raises AdapterNotFound
        return {"object": "list", "data": [describe_adapter(record) for record in found]}

    @router.get("/shadow", summary="Show which decisions the shadow versions would gain and lose if they were offered")
    async def show_shadow() -> dict[str, Any]:
        data = [{"id": expert_id, **tally.as_json()} for expert_id, tally in sorted(shadow.tallies.items())]
        return {"object": "list", "data": data}

    @router.get("/audit", summary="List who changed what, when and why, newest first")
    async def audit(name: str | None = None, limit: Limit = 100, before: Before = None) -> dict[str, Any]:
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
