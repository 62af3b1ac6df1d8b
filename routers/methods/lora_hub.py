"""Router `lora_hub`: one mix for a task, found by gradient-free search on a few samples (Huang et al., 2023).

    min_w  mean CE of the samples under A' = Σ w_e A_e, B' = Σ w_e B_e, + 0.05 · mean |w_e|,     w_e ∈ [−1.5, 1.5]

over 20 experts drawn at random, from w = 0, by nevergrad's NGOpt with 40 evaluations. The recommended weights are used
for every prompt, so a policy belongs to one task: that of the samples it was fitted with. With ``ab`` the update B'A'
has cross terms, and w_e² loses the sign of a weight, so it is not a weighted sum of experts. ``exact`` searches
Σ w_e B_e A_e within [0, 1.5], which is an ordinary mix. The artefact keeps the weights as ``weights``, and the mix can
also be composed into a separate expert from them.

Differences from its code (sail-sg/lorahub): that code averages the cross-entropy over all tokens of the samples and
then divides by the number of samples, so with five samples the penalty weighs five times as much (as ``penalty=0.25``
does here). Here the loss is the mean of the samples' means. Samples are taken evenly from those given. The paper
averages the results of five seeds; here one seed makes one policy.

Cost: fitting takes `budget` evaluations of up to `max_samples` samples; a request takes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from routers.base import MethodCard
from routers.families.cards import STATIC_MIX_CARD
from routers.families.static_mix import MeanLoss, StaticMixConfig, StaticMixRouter, Weights, search


class LoraHubConfig(StaticMixConfig):
    """Options of `lora_hub`."""

    formula: Literal["exact", "ab"] = Field(
        "ab", description="Sum the A and the B matrices with the weights, as in the paper (ab), or the updates (exact)."
    )
    max_samples: int = Field(5, ge=1, le=16, description="Number of samples that count at most, evenly spaced.")
    max_weight: float = Field(1.5, gt=0, le=100, description="Bound of the weights; they are negative only with ab.")
    penalty: float = Field(0.05, ge=0, description="Factor of the penalty on the mean absolute weight.")


class LoraHubRouter(StaticMixRouter):
    """Uses the mix that a gradient-free search found on a few samples of a task."""

    card: ClassVar[MethodCard] = replace(
        STATIC_MIX_CARD,
        name="lora_hub",
        title="LoraHub: a mix found on a few samples",
        paper="Huang et al., LoraHub, 2023 (arXiv:2307.13269)",
        cost="none; fitting evaluates the samples 40 times",
        differences=(
            "the loss is the mean over samples, not that divided by their number",
            "one seed instead of the mean result of five",
        ),
        standing="recommended",
    )
    config_class: ClassVar[type[StaticMixConfig]] = LoraHubConfig

    @classmethod
    def find(cls, config: LoraHubConfig, loss: MeanLoss, num_experts: int) -> Weights:
        """Return the weights that NGOpt recommends."""

        def objective(weights: Weights) -> float:
            return loss(weights) + config.penalty * float(np.abs(weights).mean())

        lowest = -config.max_weight if config.formula == "ab" else 0.0
        return search(objective, num_experts, (lowest, config.max_weight), config.budget, config.seed)
