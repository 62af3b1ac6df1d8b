"""Routers that look at nothing: what every method must beat.

`base` never uses an expert; `random` takes any one that the caller may use, the same one for the same prompt;
`uniform` mixes all of them with equal weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from pydantic import Field

from routers.artefacts import check_router
from routers.base import (
    MAX_EXPERTS,
    Artefact,
    Decision,
    FitData,
    MethodCard,
    Progress,
    RouteQuery,
    RouterConfig,
    ScoredExpert,
    WeightedExpert,
)
from routers.errors import BadArtefact


def _card(name: str, title: str, selection: Any, aggregation: Any) -> MethodCard:
    return MethodCard(
        name=name,
        title=title,
        paper="baseline",
        expert_training="any",
        expert_data="none",
        routing_dataset="none",
        input_granularity="task",
        depth="model",
        selection=selection,
        aggregation=aggregation,
        generalization="none",
        user_dataset="none",
        needs_embedding=False,
        cost="none",
    )


class BaselineConfig(RouterConfig):
    """No options."""


class UniformConfig(RouterConfig):
    """Options of `uniform`."""

    max_experts: int = Field(
        MAX_EXPERTS, ge=1, le=MAX_EXPERTS, description="Experts in the mix; the engine needs a slot for each."
    )


class RandomConfig(RouterConfig):
    """Options of `random`."""

    seed: int = Field(0, description="Another seed gives other choices.")


class BaseRouter:
    """Never an expert."""

    card: ClassVar[MethodCard] = _card("base", "The base alone", "top-1", "none")
    config_class: ClassVar[type[RouterConfig]] = BaselineConfig

    def __init__(self, config: Any, experts: Sequence[str]) -> None:
        self._config = config
        self._experts = tuple(experts)

    @classmethod
    def fit(cls, config: Any, data: FitData, progress: Progress) -> Artefact:
        """Note who is there."""
        experts = sorted(expert.expert_id for expert in data.experts)
        return Artefact(cls.card.name, {}, {"experts": experts}, data.version, data.embedder)

    @classmethod
    def load(cls, config: Any, artefact: Artefact) -> Self:
        """From `fit`; raises `BadArtefact`."""
        check_router(artefact, cls.card.name)
        if not isinstance(artefact.data.get("experts"), list):
            raise BadArtefact(f"a {cls.card.name} artefact lacks or garbles 'experts'")
        return cls(config, [str(expert) for expert in artefact.data["experts"]])

    def route(self, query: RouteQuery) -> Decision:
        """Abstain."""
        return Decision((), 0.0, reason="This policy always answers with the base.")

    def _allowed(self, query: RouteQuery) -> list[str]:
        return [expert for expert in self._experts if query.allows(expert)]


class RandomRouter(BaseRouter):
    """Any one expert, drawn by a hash of the prompt."""

    card: ClassVar[MethodCard] = _card("random", "A random expert", "top-1", "none")
    config_class: ClassVar[type[RouterConfig]] = RandomConfig

    def route(self, query: RouteQuery) -> Decision:
        """The expert whose hash with the prompt is largest: adding experts changes few choices."""
        allowed = self._allowed(query)
        if not allowed:
            return Decision((), 0.0, reason="No expert may be used.")

        def draw(expert: str) -> bytes:
            return hashlib.sha256(f"{self._config.seed}\0{expert}\0{query.text}".encode("utf-8", "replace")).digest()

        chosen = max(allowed, key=draw)
        return Decision(
            (WeightedExpert(chosen),), 1 / len(allowed), (ScoredExpert(chosen, 1 / len(allowed)),), reason="By lot."
        )


class UniformRouter(BaseRouter):
    """All experts with equal weights."""

    card: ClassVar[MethodCard] = _card("uniform", "A mix of all experts", "dense", "outputs")
    config_class: ClassVar[type[RouterConfig]] = UniformConfig

    def route(self, query: RouteQuery) -> Decision:
        """Each with weight 1/n."""
        allowed = self._allowed(query)[: self._config.max_experts]
        if not allowed:
            return Decision((), 0.0, reason="No expert may be used.")
        weight = 1 / len(allowed)
        experts = tuple(WeightedExpert(expert, weight) for expert in allowed)
        scored = tuple(ScoredExpert(expert, weight) for expert in allowed)
        return Decision(experts, weight, scored, reason=f"All {len(allowed)} experts in equal parts.")
