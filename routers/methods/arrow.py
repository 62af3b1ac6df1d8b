"""Router `arrow`: per-token, per-layer gating inside the model (Ostapenko et al. 2024), over experts near the prompt.

The gate is the engine's (`gate(arrow,…)`): in every layer each token uses the k experts along whose prototypes it lies
furthest. Which experts the gate may choose among is decided here: the `num_retrieved` whose examples' mean is nearest
to the prompt, since all of them must be resident. In a library of no more experts that is Arrow as published, over all
of them. It abstains as `centroid` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from routers.base import MAX_EXPERTS, GateChoice, MethodCard, ScoredExpert, WeightedExpert
from routers.families.scoring import ScoringConfig
from routers.methods.centroid import CentroidRouter, MeanConfig


class ArrowConfig(MeanConfig):
    """Options of `arrow`."""

    num_retrieved: int = Field(8, ge=1, le=MAX_EXPERTS, description="Experts that the gate chooses among.")
    k: int = Field(4, ge=1, le=MAX_EXPERTS, description="Experts that a token may use in a layer.")
    gate_temperature: float = Field(1.0, gt=0, le=100, description="Of the softmax over those k scores.")
    aggregation: Literal["output", "ab"] = Field(
        "output", description="Weight the experts' outputs (PEFT) or average A and B (mttl)."
    )


class ArrowRouter(CentroidRouter):
    """Arrow over retrieved experts; see the module's docstring."""

    card: ClassVar[MethodCard] = replace(
        CentroidRouter.card,
        name="arrow",
        title="Arrow: gating by prototypes of the weights",
        paper="Ostapenko et al., Towards Modular LLMs, 2024 (arXiv:2405.11157)",
        routing_dataset="none for the gate; examples to retrieve experts",
        input_granularity="step",
        depth="module",
        selection="top-k",
        aggregation="outputs",
        generalization="zero-shot on unseen tasks",
        cost="one product with E means; in the engine, k experts for each token",
        differences=("experts are retrieved first", "prototypes by an exact singular value decomposition"),
    )
    config_class: ClassVar[type[ScoringConfig]] = ArrowConfig

    def choose(self, ranked: Sequence[ScoredExpert]) -> tuple[tuple[WeightedExpert, ...], GateChoice | None]:
        """The retrieved experts, and the gate over them."""
        best = tuple(WeightedExpert(scored.expert_id) for scored in ranked[: self.config.num_retrieved])
        gate = GateChoice("arrow", min(self.config.k, len(best)), self.config.gate_temperature, self.config.aggregation)
        return best, gate if len(best) > 1 else None
