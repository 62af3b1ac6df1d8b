"""Breaks near-ties in favour of the conversation's expert, then of an expert that is already resident.

The engine has the conversation's prefix cached for the expert that answered before, and a resident expert need not be
loaded. Both save time; neither is worth a clearly worse expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from routers.base import Decision, WeightedExpert, name_of
from server.engine.pool import EnginePool
from server.planning.catalog import Catalog
from server.planning.conversations import Choice, Conversation, ConversationMemory

KEEP_WITHIN = 0.15
"""A conversation keeps its expert while the expert's score is this close to the best, as a share of the score range."""

TIED_WITHIN = 0.03
"""Scores this close to the best, as a share of the score range, count as equal: a resident expert is preferred."""


class NearTies:
    """Replaces a decision for one expert where another expert is nearly as good and cheaper to run.

    Args:
        memory: Which expert each conversation has used.
        pool: Which experts are resident.
    """

    def __init__(self, memory: ConversationMemory, pool: EnginePool) -> None:
        self._memory = memory
        self._pool = pool

    def resolve(
        self, decision: Decision, policy: str, catalog: Catalog, conversation: Conversation
    ) -> tuple[Decision, tuple[Choice, ...]]:
        """Return the decision, possibly for another expert, and what to remember for the conversation."""
        if len(decision.experts) != 1 or decision.gate is not None:
            return decision, ()
        best = chosen = decision.experts[0].expert_id
        reason = ""
        subject = f"policy {policy}"
        used = self._memory.get(conversation, subject)
        if used is not None and used != name_of(chosen):
            close = (each for each in near_ties(decision, KEEP_WITHIN) if name_of(each) == used)
            if (kept := next(close, None)) is not None and kept in catalog.experts:
                chosen, reason = kept, "the conversation has used this expert"
        elif not self._pool.is_resident(chosen):
            resident = (each for each in near_ties(decision, TIED_WITHIN) if self._pool.is_resident(each))
            if (near := next(resident, None)) is not None and near in catalog.experts:
                chosen, reason = near, "nearly as good, and resident in the engine"
        choices = ((subject, name_of(chosen)),)
        if chosen == best:
            return decision, choices
        explanation = f"{decision.reason} Chosen instead of {best}: {reason}."
        experts = (WeightedExpert(chosen, decision.experts[0].weight),)
        return replace(decision, experts=experts, reason=explanation.strip()), choices


def near_ties(decision: Decision, within: float) -> Iterator[str]:
    """Yield candidates that score nearly as well as the best one, best first, without the chosen one.

    Each router has its own scale of scores. The distance is therefore a share of the range between the best and the
    worst of the listed candidates.
    """
    if not decision.candidates:
        return
    best, worst = decision.candidates[0].score, decision.candidates[-1].score
    for candidate in decision.candidates:
        if best - candidate.score > within * (best - worst):
            return
        if candidate.expert_id != decision.experts[0].expert_id:
            yield candidate.expert_id
