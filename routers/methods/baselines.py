"""Routers `base`, `random` and `uniform`, which do not look at the prompt: the baselines that every method must beat.

`base` never uses an expert. `random` takes any expert that the caller may use, the same one for the same prompt.
`uniform` mixes all of them with equal weights.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from routers.base import (
    MAX_EXPERTS,
    Decision,
    MethodCard,
    RouteQuery,
    RouterConfig,
    ScoredExpert,
    WeightedExpert,
)
from routers.families.cards import BASELINE_CARD
from routers.families.expert_list import ExpertListRouter

_NOBODY = Decision((), 0.0, reason="No expert may be used.")


class BaselineConfig(RouterConfig):
    """No options."""


class UniformConfig(RouterConfig):
    """Options of `uniform`."""

    max_experts: int = Field(
        MAX_EXPERTS, ge=1, le=MAX_EXPERTS, description="Experts in the mix, at most; the engine needs a slot for each."
    )


class RandomConfig(RouterConfig):
    """Options of `random`."""

    seed: int = Field(0, description="Another seed gives other choices.")


class BaseRouter(ExpertListRouter):
    """Always abstains, so that the base answers."""

    card: ClassVar[MethodCard] = replace(BASELINE_CARD, name="base", title="The base alone", cost="none")
    config_class: ClassVar[type[RouterConfig]] = BaselineConfig

    def route(self, query: RouteQuery) -> Decision:
        """Abstain."""
        return Decision((), 0.0, reason="This policy always answers with the base.")


class RandomRouter(ExpertListRouter):
    """Chooses an expert by a hash of the prompt."""

    card: ClassVar[MethodCard] = replace(BASELINE_CARD, name="random", title="A random expert", cost="none")
    config_class: ClassVar[type[RouterConfig]] = RandomConfig

    def route(self, query: RouteQuery) -> Decision:
        """Choose the expert whose hash together with the prompt is largest, so a new expert changes few choices."""
        allowed = self.allowed(query)
        if not allowed:
            return _NOBODY

        def draw(expert: str) -> bytes:
            return hashlib.sha256(f"{self.config.seed}\0{expert}\0{query.text}".encode("utf-8", "replace")).digest()

        chosen = max(allowed, key=draw)
        share = 1 / len(allowed)
        return Decision((WeightedExpert(chosen),), share, (ScoredExpert(chosen, share),), reason="Chosen at random.")


class UniformRouter(ExpertListRouter):
    """Mixes all experts with equal weights."""

    card: ClassVar[MethodCard] = replace(
        BASELINE_CARD,
        name="uniform",
        title="A mix of all experts",
        selection="dense",
        aggregation="outputs",
        cost="none",
    )
    config_class: ClassVar[type[RouterConfig]] = UniformConfig

    def route(self, query: RouteQuery) -> Decision:
        """Give each of the n experts weight 1/n."""
        allowed = self.allowed(query)[: self.config.max_experts]
        if not allowed:
            return _NOBODY
        weight = 1 / len(allowed)
        experts = tuple(WeightedExpert(expert, weight) for expert in allowed)
        scored = tuple(ScoredExpert(expert, weight) for expert in allowed)
        return Decision(experts, weight, scored, reason=f"All {len(allowed)} experts with equal weights.")
