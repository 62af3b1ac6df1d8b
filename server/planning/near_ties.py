"""A decision for one expert, unless another expert is nearly as good and nearer at hand.

The expert that the conversation has had goes first, whose prefix the engine has cached; then one that is resident in an
engine, if the chosen one is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from routers.base import Decision, WeightedExpert
from server.engine.pool import EnginePool
from server.planning.catalog import Catalog
from server.planning.conversations import Choice, Conversation, ConversationMemory

KEPT_WITHIN = 0.15
"""A conversation keeps its expert unless another one's score is better by more than this part of the scores' range."""

TIED_WITHIN = 0.03
"""Scores that differ by less than this part of their range are as good as equal: a resident expert goes first."""


class Settling:
    """See the module's docstring.

    Args:
        memory: Which expert each conversation has had.
        pool: Knows which experts are resident.
    """

    def __init__(self, memory: ConversationMemory, pool: EnginePool) -> None:
        self._memory = memory
        self._pool = pool

    def settle(
        self, decision: Decision, policy: str, catalog: Catalog, conversation: Conversation
    ) -> tuple[Decision, tuple[Choice, ...]]:
        """The decision, or another one for what is nearer at hand, and what to remember of it."""
        if len(decision.experts) != 1 or decision.gate is not None:
            return decision, ()
        chosen = decision.experts[0].expert_id
        name = chosen.partition("@")[0]
        subject = f"policy {policy}"
        had = self._memory.get(conversation, subject)
        if had is not None and had != name:
            close = (each for each in near_ties(decision, KEPT_WITHIN) if each.partition("@")[0] == had)
            if (kept := next(close, None)) is not None and kept in catalog.experts:
                chosen, why = kept, "the conversation has had this expert"
        elif not self._pool.is_resident(chosen):
            resident = (each for each in near_ties(decision, TIED_WITHIN) if self._pool.is_resident(each))
            if (near := next(resident, None)) is not None and near in catalog.experts:
                chosen, why = near, "nearly as good, and resident in the engine"
        choices = ((subject, chosen.partition("@")[0]),)
        if chosen == decision.experts[0].expert_id:
            return decision, choices
        reason = f"{decision.reason} Taken instead of {decision.experts[0].expert_id}: {why}."
        experts = (WeightedExpert(chosen, decision.experts[0].weight),)
        return replace(decision, experts=experts, reason=reason.strip()), choices


def near_ties(decision: Decision, within: float) -> Iterator[str]:
    """Candidates that are nearly as good as the best one, best first, without the chosen one.

    Scores have a scale of their own with each router, so the distance counts as a part of that from the best to the
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
