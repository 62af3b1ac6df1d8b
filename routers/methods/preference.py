"""Router `preference`: the mix that the caller's own ``preference`` asks for, with a weight for each expert.

    r_e = wanted_e / Σ wanted        over the experts that may be used
    w_e = scale · r_e                the weight of expert e in every module

Pareto weight-ensembling (Tang et al., 2024) learns a small network for each MLP block that maps the preference r on the
simplex to weights w = MLP(r). Here no network is trained or executed, so this is not that method. It is the simplest
map of its kind, task arithmetic along r: weights are linear in the preference and the same in every module. The two
differ even before training, when the network gives about 0.3 for every expert whatever r is. With ``scale`` 1 the
weights sum to one (an interpolation between experts, as rewarded soups do with whole models). Larger sums as in task
arithmetic, 0.3 for each of n equally wanted experts, are ``scale`` 0.3 n.

Names that no expert has are ignored, and so are experts that the caller may not use. Confidence is the largest share.
Cost: one look-up for each name of the preference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from routers.base import (
    MAX_EXPERTS,
    Decision,
    GateChoice,
    MethodCard,
    RouteQuery,
    RouterConfig,
    ScoredExpert,
    WeightedExpert,
    name_of,
)
from routers.families.expert_list import ExpertListRouter


class PreferenceConfig(RouterConfig):
    """Options of `preference`."""

    scale: float = Field(1.0, gt=0, le=64, description="Sum of the weights of the mix.")
    default: dict[str, Annotated[float, Field(ge=0, le=100)]] | None = Field(
        None,
        max_length=MAX_EXPERTS,
        description="Preference for requests that state none; unset: the base answers those.",
    )


class PreferenceRouter(ExpertListRouter):
    """Mixes the experts by the weights that the caller prefers."""

    card: ClassVar[MethodCard] = MethodCard(
        name="preference",
        title="A mix by the caller's preference",
        paper="Tang et al., Pareto weight-ensembling mixture of experts, 2024 (arXiv:2406.09770), reduced",
        expert_training="independent",
        expert_data="none",
        routing_dataset="none; the paper trains on the experts' data",
        input_granularity="task",
        depth="model",
        selection="dense",
        aggregation="parameters",
        generalization="any trade-off between the experts",
        user_dataset="none",
        needs_embedding=False,
        cost="none",
        differences=(
            "no network is learned from the preference to the weights of a module: the weights are linear in the "
            "preference and the same in all modules",
            "experts change all modules that they adapt, not only the MLP blocks",
        ),
    )
    config_class: ClassVar[type[RouterConfig]] = PreferenceConfig

    def __init__(self, config: Any, experts: Sequence[str]) -> None:
        super().__init__(config, experts)
        named = {name_of(expert): expert for expert in reversed(self.experts)}
        self._known = named | {expert: expert for expert in self.experts}

    def route(self, query: RouteQuery) -> Decision:
        """Mix the experts in proportion to the preference, times the scale."""
        wanted = query.preference or self.config.default
        if not wanted:
            return Decision((), 0.0, reason="The request has no preference.")
        weights = self._weights(wanted, query)
        if not weights:
            return Decision((), 0.0, reason="The preference names no allowed expert.")
        ranked = sorted(weights.items(), key=lambda pair: (-pair[1], pair[0]))[:MAX_EXPERTS]
        total = sum(weight for _, weight in ranked)
        scored = tuple(ScoredExpert(expert, weight / total) for expert, weight in ranked)
        chosen = tuple(WeightedExpert(each.expert_id, self.config.scale * each.score) for each in scored)
        return Decision(
            chosen,
            scored[0].score,
            scored,
            reason=f"{len(chosen)} preferred experts, most of all {scored[0].expert_id} ({scored[0].score:.2f}).",
            # a single expert is executed with weight one unless a gate says that its weight matters
            gate=GateChoice("fixed") if len(chosen) == 1 and chosen[0].weight != 1.0 else None,
        )

    def _weights(self, wanted: Mapping[str, float], query: RouteQuery) -> dict[str, float]:
        """Return positive weights of the allowed experts; one that is given by name and by id gets the sum."""
        weights: dict[str, float] = {}
        for name, weight in wanted.items():
            expert = self._known.get(name)
            if expert is not None and query.allows(expert) and np.isfinite(weight) and weight > 0:
                weights[expert] = weights.get(expert, 0.0) + weight
        return weights
