"""Records of routed requests: one decision each, and callers' feedback on the answer.

Times are timezone-aware and in UTC; durations are in milliseconds. Texts and embeddings are present only if the
operator keeps them.
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
        key_id: The key that sent both the request and the feedback.
        rating: From -1 (bad) to 1 (good).
        comment: Free text; kept only if prompts may be kept.
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
    """A request that reached an engine, and what answered it.

    Attributes:
        kind: What the caller asked for: ``policy``, ``expert``, ``base`` or ``recipe``.
        policy: The policy that decided, if one did.
        experts: Ids (``name@sha8``) of the experts of the recipe.
        confidence: The router's confidence; None if no policy was asked.
        abstained: Whether a policy was asked and chose no expert.
        ttft_ms: Time to a stream's first byte; None for other answers.
        cost: Price of the request when it ran.
        text: The routed text, at most `MAX_TEXT_CHARS` characters.
        embedder, embedding: For an abstention, the prompt's embedding as float16 and the embedder that made it.
        feedback: The feedback received so far.
        number: Row number, rising with every row written; 0 before that.
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
        """The expert's name, ``base``, or the kind of recipe if several experts answered."""
        kind = self.recipe.partition("(")[0]
        if kind != self.recipe:
            return kind
        return self.experts[0].rpartition("@")[0] if self.experts else "base"


@dataclass(frozen=True, slots=True)
class DecisionQuery:
    """A filter for decisions, newest first; None means no condition.

    Attributes:
        limit: Maximum number of decisions, up to `MAX_PAGE`.
        before: Return only decisions with a smaller number.
        since: Return only decisions at this time or later.
        expert: A name, or ``name@sha8``, among the recipe's experts.
        rated: Whether the decision has feedback.
        embedded: Return only decisions with an embedding, and read the embedding too.
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
    """Decisions, newest first; `next` is where the next page starts, or None after the last page.

    A page may hold fewer decisions than its limit, even none, without being the last: one call examines a bounded
    number of rows.
    """

    decisions: tuple[DecisionRecord, ...]
    next: int | None
