"""Router `arrow`: per-token, per-layer gating inside the model (Ostapenko et al., 2024), over experts near the prompt.

The engine executes the gate (`gate(arrow,…)`): in every layer each token uses the k experts whose prototypes have the
largest absolute product with it. This router decides which experts the gate chooses among: the `num_retrieved` whose
examples' mean is nearest to the prompt, because all of them must be resident. In a library of up to `num_retrieved`
experts that is Arrow as published, over all experts. The router abstains as `centroid` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from routers.base import MAX_EXPERTS, GateChoice, MethodCard, ScoredExpert, WeightedExpert
from routers.families.cards import EMBEDDING_CARD
from routers.families.example_means import MeanConfig, MeanRouter
from routers.families.options import CalibrationOptions
from routers.families.selection import Chosen


class ArrowConfig(MeanConfig):
    """Options of `arrow`."""

    num_retrieved: int = Field(8, ge=1, le=MAX_EXPERTS, description="Experts that the gate chooses among.")
    k: int = Field(4, ge=1, le=MAX_EXPERTS, description="Experts that a token may use in a layer.")
    gate_temperature: float = Field(1.0, gt=0, le=100, description="Temperature of the softmax over those k scores.")
    aggregation: Literal["output", "ab"] = Field(
        "output", description="Weight the experts' outputs (PEFT) or average A and B (mttl)."
    )


class ArrowRouter(MeanRouter):
    """Retrieves experts near the prompt and lets the Arrow gate weight them per token."""

    card: ClassVar[MethodCard] = replace(
        EMBEDDING_CARD,
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
        differences=("experts are retrieved first", "prototypes come from an exact singular value decomposition"),
    )
    config_class: ClassVar[type[CalibrationOptions]] = ArrowConfig

    def choose(self, ranked: Sequence[ScoredExpert]) -> Chosen:
        """Choose the retrieved experts and the gate over them."""
        best = tuple(WeightedExpert(scored.expert_id) for scored in ranked[: self.config.num_retrieved])
        gate = GateChoice("arrow", min(self.config.k, len(best)), self.config.gate_temperature, self.config.aggregation)
        return best, gate if len(best) > 1 else None
