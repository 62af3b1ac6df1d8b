"""From ranked experts to what is executed: the best one, a mix of the k best, or their fusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from routers.base import MAX_EXPERTS, GateChoice, ScoredExpert, WeightedExpert
from routers.families.options import CalibrationOptions

FUSION = GateChoice("uniform", aggregation="ab")
"""The A matrices of several experts are averaged, and so are their B matrices, with equal weights."""

WEIGHTED_FUSION = GateChoice("fixed", aggregation="ab")
"""As `FUSION`, with the decision's own weights."""

Chosen = tuple[tuple[WeightedExpert, ...], GateChoice | None]
"""The experts of a decision, and the gate that weights them."""


class SelectionConfig(CalibrationOptions):
    """Options of routers that turn scores into one expert or a mix."""

    selection: Literal["top-1", "mixture", "fusion"] = Field(
        "top-1",
        description="What is executed: the best expert; the weighted sum of the k best (mixture); or the k best with "
        "their A matrices and their B matrices averaged separately (fusion).",
    )
    top_k: int = Field(3, ge=1, le=MAX_EXPERTS, description="Experts in a mixture or fusion.")
    temperature: float | None = Field(
        None, gt=0, description="Weights of a mixture are softmax(score / temperature); unset: equal weights."
    )


def select(config: SelectionConfig, ranked: Sequence[ScoredExpert]) -> Chosen:
    """Select from ranked experts, best first and at least one, as the options say."""
    if config.selection == "top-1":
        return (WeightedExpert(ranked[0].expert_id),), None
    best = ranked[: config.top_k]
    if config.selection == "fusion":
        return equal_weights(best), FUSION
    if config.temperature is None:
        return equal_weights(best), None
    return softmax_weights(best, config.temperature), None


def equal_weights(ranked: Sequence[ScoredExpert]) -> tuple[WeightedExpert, ...]:
    """Return the experts with equal weights that sum to one."""
    return tuple(WeightedExpert(scored.expert_id, 1 / len(ranked)) for scored in ranked)


def softmax_weights(ranked: Sequence[ScoredExpert], temperature: float) -> tuple[WeightedExpert, ...]:
    """Return the experts with the weights softmax(score / temperature)."""
    scores = np.array([scored.score for scored in ranked]) / temperature
    weights = np.exp(scores - scores.max())
    weights /= weights.sum()
    return tuple(WeightedExpert(s.expert_id, float(w)) for s, w in zip(ranked, weights, strict=True))
