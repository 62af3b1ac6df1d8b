"""Routers that need to know nothing but which experts exist."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from routers.artefacts import reading
from routers.base import Artefact, Decision, FitData, MethodCard, Progress, RouteQuery, RouterConfig


class ExpertListRouter(ABC):
    """A router whose artefact is the list of the library's experts.

    Args:
        config: The router's options.
        experts: Ids of all experts, sorted.
    """

    card: ClassVar[MethodCard]
    config_class: ClassVar[type[RouterConfig]]

    def __init__(self, config: Any, experts: Sequence[str]) -> None:
        self.config = config
        self.experts = tuple(experts)

    @classmethod
    def fit(cls, config: Any, data: FitData, progress: Progress) -> Artefact:
        """List the experts."""
        experts = sorted(expert.expert_id for expert in data.experts)
        return Artefact(cls.card.name, {}, {"experts": experts}, data.version, data.embedder)

    @classmethod
    def load(cls, config: Any, artefact: Artefact) -> Self:
        """Build the router from an artefact of `fit`; raises `BadArtefact`."""
        with reading(artefact, cls.card.name):
            experts = artefact.data["experts"]
            if not isinstance(experts, list):
                raise TypeError("'experts' is not a list")
        return cls(config, [str(expert) for expert in experts])

    @abstractmethod
    def route(self, query: RouteQuery) -> Decision:
        """Decide."""

    def allowed(self, query: RouteQuery) -> list[str]:
        """Return the experts that the caller may use, sorted."""
        return [expert for expert in self.experts if query.allows(expert)]
