"""Router `learned_mix`: one mix for a task, with weights on the simplex learned on validation samples.

    w = softmax(z),     min_z  mean CE of the samples under Σ w_e · expert_e,     z_e ∈ [−5, 5]

for each task of the samples, and over all of them; a request's ``task_id`` selects the weights. The search begins with
equal weights and keeps the best weights that it tried, so the mix is never worse than the uniform one on those samples.
``weights="uniform"`` skips the search.

The comparison of uniform merging, learned merging and routing is by Lotfi et al. (2026). Only the abstract of their
paper was available, so the search is this project's: nevergrad's NGOpt on bounded logits. With 40 to 200 evaluations of
synthetic losses over 8 to 64 experts it came closer to the optimum than without bounds or than coordinate search.

Cost: fitting takes `budget` evaluations of each task's samples and the same number for all tasks together; a request
takes one look-up.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from scipy.special import softmax

from routers.base import MethodCard
from routers.families.cards import STATIC_MIX_CARD
from routers.families.static_mix import MeanLoss, StaticMixConfig, StaticMixRouter, Weights, search

_MAX_LOGIT = 5.0


class LearnedMixConfig(StaticMixConfig):
    """Options of `learned_mix`."""

    weights: Literal["uniform", "learned"] = Field("learned", description="Equal weights, or the result of a search.")
    max_samples: int = Field(16, ge=1, le=1000, description="Number of samples of a task that count at most.")
    budget: int = Field(
        100,
        ge=1,
        description="Number of weight vectors that are tried for a task, the equal one included; at most 50 an expert.",
    )


class LearnedMixRouter(StaticMixRouter):
    """Uses the weights that were learned for the task of the request."""

    card: ClassVar[MethodCard] = replace(
        STATIC_MIX_CARD,
        name="learned_mix",
        title="A mix learned for each task",
        paper="Lotfi et al., trade-offs of ensembling, merging and routing, 2026 (arXiv:2603.03535), its abstract",
        routing_dataset="prompts with answers of each task",
        generalization="the tasks of the samples; others get the mix over all",
        user_dataset="prompts with answers of each task",
        cost="one look-up; fitting evaluates each task's samples 100 times",
        differences=("the search for the weights is this project's, because only the paper's abstract was available",),
        standing="recommended",
    )
    config_class: ClassVar[type[StaticMixConfig]] = LearnedMixConfig
    by_task: ClassVar[bool] = True

    @classmethod
    def find(cls, config: LearnedMixConfig, loss: MeanLoss, num_experts: int) -> Weights:
        """Return the best of the weights that were tried."""
        uniform = np.full(num_experts, 1 / num_experts)
        if config.weights == "uniform" or num_experts == 1:
            return uniform
        tried = [(loss(uniform), uniform)]

        def objective(logits: Weights) -> float:
            weights = softmax(logits)
            tried.append((loss(weights), weights))
            return tried[-1][0]

        if config.budget > 1:
            search(objective, num_experts, (-_MAX_LOGIT, _MAX_LOGIT), config.budget - 1, config.seed)
        return min(tried, key=lambda pair: pair[0])[1]
