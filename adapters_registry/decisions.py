"""What is kept of requests: one decision each, and what callers thought of its answer.

Times are aware and in UTC; durations in milliseconds. A text or an embedding is there only if the operator keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

MAX_TEXT_CHARS = 2000
MAX_COMMENT_CHARS = 2000
MAX_PAGE = 500


@dataclass(frozen=True, slots=True)
class Feedback:
    """A caller's opinion of an answer.

    Attributes:
        key_id: The key that sent the request, and the opinion.
        rating: From -1 (bad) to 1 (good).
        comment: Only if prompts may be kept.
        expert: Name of the expert that should have answered, or ``base``.
    """

    key_id: str
    request_id: str
    at: datetime
    rating: float
    comment: str | None = None
    expert: str | None = None


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """A request that reached an engine, and who answered it.

    Attributes:
        kind: What the caller asked for: ``policy``, ``expert``, ``base`` or ``recipe``.
        policy: The policy that decided, if one did.
        experts: Ids (``name@sha8``) of the experts of the recipe.
        confidence: The router's own; None if no policy was asked.
        abstained: A policy was asked and chose no expert.
        ttft_ms: Until a stream's first byte; None for other answers.
        cost: By the prices at that time.
        text: What was routed, at most `MAX_TEXT_CHARS` characters.
        embedder, embedding: Of an abstention: the prompt's embedding as float16, and whose it is.
        feedback: As far as it has come.
        number: Grows with every row that is written; 0 before.
    """

    request_id: str
    at: datetime
    key_id: str
    endpoint: str
    kind: str
    policy: str | None
    recipe: str
    experts: tuple[str, ...]
    confidence: float | None
    abstained: bool
    status: int
    input_tokens: int
    output_tokens: int
    duration_ms: float
    ttft_ms: float | None
    cost: float
    text: str | None = None
    embedder: str | None = None
    embedding: bytes | None = None
    feedback: Feedback | None = None
    number: int = 0

    @property
    def answered_by(self) -> str:
        """The expert's name, ``base``, or the kind of what several experts do."""
        kind = self.recipe.partition("(")[0]
        if kind != self.recipe:
            return kind
        return self.experts[0].rpartition("@")[0] if self.experts else "base"


@dataclass(frozen=True, slots=True)
class DecisionQuery:
    """Which decisions are wanted, newest first; None is no condition.

    Attributes:
        limit: At most so many, up to `MAX_PAGE`.
        before: Only those with a smaller number.
        since: Only those at this time or later.
        expert: A name, or ``name@sha8``, among the recipe's experts.
        rated: With or without feedback.
        embedded: Only those with an embedding, which is then read too.
    """

    limit: int = 50
    before: int | None = None
    since: datetime | None = None
    policy: str | None = None
    expert: str | None = None
    abstained: bool | None = None
    key_id: str | None = None
    request_id: str | None = None
    rated: bool | None = None
    embedded: bool = False


@dataclass(frozen=True, slots=True)
class DecisionPage:
    """Decisions, newest first; `next` is where to go on, or None if all has been looked at.

    A page may hold fewer than were asked for, even none, and yet not be the last: one call looks at a bounded part.
    """

    decisions: tuple[DecisionRecord, ...]
    next: int | None
