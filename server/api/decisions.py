"""The admin API of decisions: the decision log, groups of abstentions, and drift; also the route for feedback."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Query
from fastapi.responses import Response

from adapters_registry.decisions import MAX_PAGE, DecisionQuery, DecisionRecord
from adapters_registry.library import Library
from adapters_registry.records import utc_now
from server.access.auth import Authenticator
from server.api.guard import BodyOf, Caller, requires
from server.errors import NotFound
from server.experts.watcher import LibraryWatcher
from server.journal.abstentions import Group, group_abstentions, most_common_embedder, read_abstentions
from server.journal.decision_log import DecisionLog
from server.journal.feedback import FeedbackDesk, FeedbackRequest
from server.planning.catalog import DEFAULT_POLICY
from server.telemetry.drift import PolicyDrift, RecentDecisions, drift_of

MAX_FEEDBACK_BYTES = 64 << 10
MAX_NUMBER = 2**63 - 1

PolicyName = Annotated[
    str | None, Query(min_length=1, max_length=63, pattern=r"^[^\x00]+$", description="Only decisions of this policy.")
]
ExpertName = Annotated[
    str | None,
    Query(
        max_length=72,
        pattern=r"^[a-z0-9][a-z0-9_.-]*(@[0-9a-f]{8})?$",
        description="Only decisions whose recipe has this name or name@version.",
    ),
]
RequestId = Annotated[
    str | None, Query(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="Only decisions for requests with this id.")
]
KeyId = Annotated[
    str | None, Query(pattern=r"^[a-z0-9]{1,16}$", description="Only decisions for requests of this key.")
]
Rating = Annotated[FeedbackRequest, Depends(BodyOf(FeedbackRequest, MAX_FEEDBACK_BYTES))]


def decisions_router(
    library: Library,
    log: DecisionLog,
    recent: RecentDecisions,
    watcher: LibraryWatcher,
    authenticator: Authenticator,
) -> APIRouter:
    """Routes under ``/admin`` about decisions."""
    router = APIRouter(prefix="/admin", tags=["decisions"], dependencies=[Depends(requires(authenticator, "admin"))])

    @router.get("/decisions", summary="List the decisions for requests, newest first")
    async def list_decisions(
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Maximum number of decisions.")] = 50,
        before: Annotated[
            int | None, Query(ge=1, le=MAX_NUMBER, description="The 'next' of the previous page.")
        ] = None,
        policy: PolicyName = None,
        expert: ExpertName = None,
        abstained: Annotated[
            bool | None, Query(description="Only abstentions, or only decisions for an expert.")
        ] = None,
        request_id: RequestId = None,
        key_id: KeyId = None,
        rated: Annotated[bool | None, Query(description="Only decisions with feedback, or only those without.")] = None,
    ) -> Response:
        query = DecisionQuery(
            limit=limit,
            before=before,
            policy=policy,
            expert=expert,
            abstained=abstained,
            request_id=request_id,
            key_id=key_id,
            rated=rated,
        )
        page = await library.decisions.recent(query)
        answer = {
            "object": "list",
            "data": [show(decision) for decision in page.decisions],
            "next": page.next,
            "decision_log": log.level,
        }
        return Response(orjson.dumps(answer), media_type="application/json")

    @router.get("/abstentions", summary="Group the prompts for which no expert was chosen: what no expert covers")
    async def group(
        policy: PolicyName = None,
        days: Annotated[int, Query(ge=1, le=3650, description="Only abstentions of the last days.")] = 7,
        k: Annotated[
            int | None, Query(ge=1, le=50, description="Number of groups; by default, as many as fit the prompts.")
        ] = None,
    ) -> dict[str, Any]:
        found = await read_abstentions(library.decisions, policy, utc_now() - timedelta(days=days))
        rows = most_common_embedder(found)
        live = watcher.catalog.policies.get(policy or (rows[0].policy if rows else None) or DEFAULT_POLICY)
        groups = await asyncio.to_thread(group_abstentions, rows, k, live)
        return {
            "object": "list",
            "data": [show_group(each, len(rows)) for each in groups],
            "num_abstentions": len(rows),
            "num_left_out": len(found) - len(rows),
            "days": days,
            "advice": _advice(log.level, groups),
        }

    @router.get("/policies/{name}/drift", summary="Compare a policy's latest decisions with what it was fitted to")
    async def drift(name: str) -> dict[str, Any]:
        live = watcher.catalog.policies.get(name)
        if live is None:
            raise NotFound(f"There is no fitted policy {name[:100]!r}; 'moergate policies list' lists all policies.")
        return show_drift(drift_of(name, recent.profile(name), live.fitting))

    return router


def feedback_router(desk: FeedbackDesk, watcher: LibraryWatcher, authenticator: Authenticator) -> APIRouter:
    """The route at which callers rate answers."""
    router = APIRouter(tags=["inference"], dependencies=[Depends(requires(authenticator, "infer"))])

    @router.post("/v1/feedback", summary="Rate the answer to a request of this key; the last rating counts")
    async def take_feedback(body: Rating, caller: Caller) -> dict[str, Any]:
        saved = (await desk.take(body, caller, watcher.catalog)).feedback
        return {
            "object": "feedback",
            "request_id": saved.request_id,
            "rating": saved.rating,
            "expert": saved.expert,
            "comment_kept": saved.comment is not None,
        }

    return router


def show(decision: DecisionRecord) -> dict[str, Any]:
    """A decision as the admin API shows it."""
    opinion = decision.feedback
    return {
        "number": decision.number,
        "request_id": decision.request_id,
        "at": decision.at.isoformat(timespec="milliseconds"),
        "key_id": decision.key_id,
        "endpoint": decision.endpoint,
        "kind": decision.kind,
        "policy": decision.policy,
        "recipe": decision.recipe,
        "experts": list(decision.experts),
        "confidence": None if decision.confidence is None else round(decision.confidence, 4),
        "abstained": decision.abstained,
        "status": decision.status,
        "input_tokens": decision.input_tokens,
        "output_tokens": decision.output_tokens,
        "duration_ms": decision.duration_ms,
        "ttft_ms": decision.ttft_ms,
        "cost": decision.cost,
        "prompt": decision.text,
        "feedback": opinion
        and {
            "at": opinion.at.isoformat(timespec="milliseconds"),
            "rating": opinion.rating,
            "expert": opinion.expert,
            "comment": opinion.comment,
        },
    }


def show_group(group: Group, num: int) -> dict[str, Any]:
    """A group of abstentions; `num` is the number of all abstentions."""
    nearest = group.nearest
    return {
        "size": group.size,
        "share": round(group.size / num, 4),
        "cohesion": round(group.cohesion, 4),
        "nearest": nearest and {"expert": nearest.expert, "score": round(nearest.score, 5)},
        "prompts": list(group.texts),
        "request_ids": list(group.request_ids),
    }


def show_drift(drift: PolicyDrift) -> dict[str, Any]:
    """A policy's drift, with its experts sorted by their share of the traffic."""
    traffic, fitting = drift.traffic, drift.fitting
    names = {*traffic.shares, *(fitting.shares if fitting else {})}

    def row(name: str) -> dict[str, Any]:
        fitted = fitting.shares.get(name) if fitting else None
        return {
            "expert": name,
            "share": {"traffic": _rounded(traffic.shares.get(name, 0.0)), "fitting": _rounded(fitted)},
            "confidence": {
                "traffic": _rounded(traffic.confidence.get(name)),
                "fitting": _rounded(fitting.confidence.get(name) if fitting else None),
            },
        }

    rows = [row(name) for name in names]
    rows.sort(key=lambda each: (-each["share"]["traffic"], -(each["share"]["fitting"] or 0.0), each["expert"]))
    return {
        "policy": drift.policy,
        "drift": _rounded(drift.index),
        "verdict": drift.verdict,
        "num_decisions": traffic.num,
        "num_examples": fitting.num if fitting else None,
        "experts": rows,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _advice(level: str, groups: list[Group]) -> str:
    if groups:
        return (
            f"Consider an expert for the largest group of {groups[0].size} prompts. If an existing expert is near, add "
            "some of them to its examples instead."
        )
    if level in ("embeddings", "prompts"):
        return "No abstention was recorded in this period: every prompt found an expert, or there was no traffic."
    return (
        f"There is nothing to group, because the setting decision_log is {level}. Set it to embeddings (or to prompts, "
        "to see texts, too), and ask again after some traffic."
    )
