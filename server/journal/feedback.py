"""Feedback: callers' ratings of answers, joined to the decisions that led to them.

The decision may not be in the database yet. If it waits in this gateway's queue, the queue is written first; if it may
wait in another gateway's queue, the database is read again a few times. A request that the key did not send is treated
like one that does not exist.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from adapters_registry.decisions import MAX_COMMENT_CHARS, DecisionRecord, Feedback
from adapters_registry.records import utc_now
from adapters_registry.stores.base import FeedbackStore
from routers.base import name_of
from server.access.auth import Principal
from server.errors import BadRequest, ModelNotFound, NotFound, Unavailable
from server.journal.decision_log import PAUSE_S, DecisionLog
from server.planning.catalog import Catalog
from server.telemetry.metrics import Metrics

RATINGS = {"up": 1.0, "down": -1.0}
PATIENCE_S = 5.0
LOOKS = 4
MAX_PATIENT = 64
"""Maximum number of requests that wait for another gateway's queue; further ones are answered at the first look."""

Score = Annotated[float, Field(ge=-1, le=1, strict=True, allow_inf_nan=False)]


class FeedbackRequest(BaseModel):
    """The body of ``POST /v1/feedback``."""

    model_config = ConfigDict(extra="forbid")

    request_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="The answer's x-request-id.")]
    rating: Annotated[Literal["up", "down"] | Score, Field(description="up, down, or a number from -1 to 1.")]
    comment: Annotated[
        str | None, Field(max_length=MAX_COMMENT_CHARS, description="Stored only if the gateway stores prompts.")
    ] = None
    expert: Annotated[
        str | None, Field(min_length=1, max_length=72, description="The expert that should have answered, or base.")
    ] = None


@dataclass(frozen=True, slots=True)
class SavedFeedback:
    """Stored feedback, and whether it is the first for its request."""

    feedback: Feedback
    is_first: bool


class FeedbackDesk:
    """Accepts feedback.

    Args:
        store: Where feedback is stored.
        decisions: The log, which may still hold the decision.
        metrics: Counts first ratings.
    """

    def __init__(self, store: FeedbackStore, decisions: DecisionLog, metrics: Metrics) -> None:
        self._store = store
        self._decisions = decisions
        self._metrics = metrics
        self._num_patient = 0

    async def take(self, body: FeedbackRequest, principal: Principal, catalog: Catalog) -> SavedFeedback:
        """Store feedback, in place of earlier feedback for the same request.

        Raises:
            ModelNotFound: The named expert does not exist or is hidden.
            BadRequest: The named model is not an expert.
            NotFound: The key sent no such request, or its decision is not stored.
            Unavailable, RegistryError: The database is down.
        """
        opinion = Feedback(
            key_id=principal.key_id,
            request_id=body.request_id,
            at=utc_now(),
            rating=RATINGS[body.rating] if isinstance(body.rating, str) else float(body.rating),
            comment=body.comment if self._decisions.level == "prompts" else None,
            expert=_expert(body.expert, principal, catalog),
        )
        if self._decisions.level == "off":
            raise NotFound(
                "This gateway stores no decisions that feedback could belong to (setting decision_log).",
                param="request_id",
            )
        try:
            async with asyncio.timeout(PATIENCE_S):
                found = await self._join(opinion)
        except TimeoutError:
            raise Unavailable(
                "The database does not answer now; send the feedback again in a moment.", retry_after_s=5
            ) from None
        if found is None:
            raise NotFound(
                "No decision with this request id is stored for this key. The id is the answer's x-request-id. The "
                "request may be too old (setting decision_log_days), left out (decision_log_sample), or in progress.",
                param="request_id",
            )
        decision, is_first = found
        if is_first:
            self._metrics.record_feedback(decision.policy, decision.answered_by, opinion.rating)
        return SavedFeedback(opinion, is_first)

    async def _join(self, opinion: Feedback) -> tuple[DecisionRecord, bool] | None:
        """Store feedback with its decision, which may still wait in a queue."""
        if self._decisions.holds(opinion.key_id, opinion.request_id):
            await self._decisions.flush()
        return await self._store.rate(opinion) or await self._look_again(opinion)

    async def _look_again(self, opinion: Feedback) -> tuple[DecisionRecord, bool] | None:
        """Wait for a decision that another gateway has not written yet."""
        if self._num_patient >= MAX_PATIENT or not self._decisions.keeps(opinion.request_id):
            return None
        self._num_patient += 1
        try:
            for _ in range(LOOKS):
                await asyncio.sleep(PAUSE_S / 2)
                if found := await self._store.rate(opinion):
                    return found
            return None
        finally:
            self._num_patient -= 1


def _expert(asked: str | None, principal: Principal, catalog: Catalog) -> str | None:
    """The name of an expert that a caller may see, or ``base``."""
    if asked is None:
        return None
    try:
        target = catalog.resolve(asked, principal)
    except ModelNotFound as error:
        raise ModelNotFound(error.message.replace("model", "expert", 1), param="expert") from None
    if target.kind == "base":
        return "base"
    if target.kind != "expert":
        raise BadRequest("'expert' must be the name of an expert, or base.", param="expert")
    return name_of(str(target.recipe))
