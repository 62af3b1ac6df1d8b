"""Router `lora_hub`: one mix for a task, found by gradient-free search on a few samples (Huang et al., 2023).

    min_w  mean CE of the samples under A' = Σ w_e A_e, B' = Σ w_e B_e, + 0.05 · mean |w_e|,     w_e ∈ [−1.5, 1.5]

over 20 experts drawn at random, from w = 0, by nevergrad's NGOpt with 40 evaluations. What it recommends is used for
every prompt, so a policy belongs to one task: that of the samples it was fitted with. The update B'A' has cross terms
and in w_e² the sign of a weight is lost, so ``ab`` is no weighted sum of experts; ``exact`` searches Σ w_e B_e A_e
within [0, 1.5], which is an ordinary mix. `fit` keeps the weights as ``weights`` in its artefact, from which the mix
can also be composed into an expert of its own.

Differs from its code (sail-sg/lorahub): there the cross-entropy is averaged over all tokens of the samples and then
divided by the number of samples, so that with five samples the penalty weighs five times as much (``penalty=0.25``
does); here it is the mean of the samples' means. The samples are taken evenly from those given. Results of five seeds
are averaged in the paper; one seed makes one policy.

Cost: fitting, `budget` evaluations of up to `max_samples` samples; a request, nothing.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from routers.base import MethodCard
from routers.families.static_mix import MeanLoss, StaticMixConfig, StaticMixRouter, Weights, search


class LoraHubConfig(StaticMixConfig):
    """Options of `lora_hub`."""

    formula: Literal["exact", "ab"] = Field(
        "ab", description="Sum A and B each with the weights, as the paper does (ab), or the updates (exact)."
    )
    max_samples: int = Field(5, ge=1, le=16, description="Samples that count, evenly taken from those given.")
    max_weight: float = Field(1.5, gt=0, le=100, description="Bound of the weights; negative ones only with ab.")
    penalty: float = Field(0.05, ge=0, description="Of the mean absolute weight.")


class LoraHubRouter(StaticMixRouter):
    """Gradient-free search for a task's mix; see the module's docstring."""

    card: ClassVar[MethodCard] = MethodCard(
        name="lora_hub",
        title="LoraHub: a mix found on a few samples",
        paper="Huang et al., LoraHub, 2023 (arXiv:2307.13269)",
        expert_training="independent",
        expert_data="private",
        routing_dataset="none",
        input_granularity="task",
        depth="model",
        selection="dense",
        aggregation="parameters",
        generalization="an unseen task with a few samples",
        user_dataset="a few prompts with answers of the task",
        needs=("samples", "engine"),
        needs_embedding=False,
        refit="costly",
        cost="none; fitting evaluates the samples 40 times",
        differences=(
            "the loss is the mean over samples, not that divided by their number",
            "one seed instead of the mean result of five",
        ),
    )
    config_class: ClassVar[type[StaticMixConfig]] = LoraHubConfig

    @classmethod
    def find(cls, config: LoraHubConfig, loss: MeanLoss, num_experts: int) -> Weights:
        """What NGOpt recommends."""

        def objective(weights: Weights) -> float:
            return loss(weights) + config.penalty * float(np.abs(weights).mean())

        lowest = -config.max_weight if config.formula == "ab" else 0.0
        return search(objective, num_experts, (lowest, config.max_weight), config.budget, config.seed)
