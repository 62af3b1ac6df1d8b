"""Router `preference`: the mix that the caller's own ``preference`` asks for, how much of each expert.

    r_e = wanted_e / Σ wanted        over the experts that may be used
    w_e = scale · r_e                the weight of expert e in every module

Pareto weight-ensembling (Tang et al., 2024) learns a small network for each MLP block that takes the preference r on
the simplex to weights w = MLP(r). That network is neither trained nor executed here, so this is not that method but
the simplest map of its kind: weights linear in the preference and the same in every module, task arithmetic along r.
The two do not agree even before training, when the network gives about 0.3 for every expert whatever r is. With
``scale`` 1 the weights sum to one (an interpolation between experts, as rewarded soups do with whole models); larger
sums as in task arithmetic, 0.3 for each of n equally wanted experts, are ``scale`` 0.3 n.

Names that no expert has, and experts that the caller may not use, are ignored alike. Confidence is the largest share.
Cost: as many look-ups as the preference has names.
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
from routers.methods.baselines import BaseRouter


class PreferenceConfig(RouterConfig):
    """Options of `preference`."""

    scale: float = Field(1.0, gt=0, le=64, description="Sum of the weights of the mix.")
    default: dict[str, Annotated[float, Field(ge=0, le=100)]] | None = Field(
        None,
        max_length=MAX_EXPERTS,
        description="What is wanted of each expert when a request has no preference; unset: the base answers.",
    )


class PreferenceRouter(BaseRouter):
    """The mix that the caller wants; see the module's docstring."""

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
            "no network is learnt from the preference to the weights of a module: they are linear and the same in all",
            "experts change all modules that they adapt, not the MLP blocks only",
        ),
    )
    config_class: ClassVar[type[RouterConfig]] = PreferenceConfig

    def __init__(self, config: Any, experts: Sequence[str]) -> None:
        super().__init__(config, experts)
        named = {name_of(expert): expert for expert in reversed(self._experts)}
        self._known = named | {expert: expert for expert in self._experts}

    def route(self, query: RouteQuery) -> Decision:
        """The preference on the simplex, times the scale."""
        wanted = query.preference or self._config.default
        if not wanted:
            return Decision((), 0.0, reason="The request has no preference.")
        weights = self._weights(wanted, query)
        if not weights:
            return Decision((), 0.0, reason="The preference is for no expert that may be used.")
        ranked = sorted(weights.items(), key=lambda pair: (-pair[1], pair[0]))[:MAX_EXPERTS]
        total = sum(weight for _, weight in ranked)
        scored = tuple(ScoredExpert(expert, weight / total) for expert, weight in ranked)
        chosen = tuple(WeightedExpert(each.expert_id, self._config.scale * each.score) for each in scored)
        return Decision(
            chosen,
            scored[0].score,
            scored,
            reason=f"As preferred: {len(chosen)} of the experts, {scored[0].score:.2f} of it {scored[0].expert_id}.",
            # one expert is executed whole unless its weight is said to be meant
            gate=GateChoice("fixed") if len(chosen) == 1 and chosen[0].weight != 1.0 else None,
        )

    def _weights(self, wanted: Mapping[str, float], query: RouteQuery) -> dict[str, float]:
        """Positive weights of the allowed experts; one that is named twice, by name and by id, gets both."""
        weights: dict[str, float] = {}
        for name, weight in wanted.items():
            expert = self._known.get(name)
            if expert is not None and query.allows(expert) and np.isfinite(weight) and weight > 0:
                weights[expert] = weights.get(expert, 0.0) + weight
        return weights
