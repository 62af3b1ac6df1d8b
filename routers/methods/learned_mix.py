"""Router `learned_mix`: one mix for a task, with weights on the simplex learnt on validation samples.

    w = softmax(z),     min_z  mean CE of the samples under Σ w_e · expert_e,     z_e ∈ [−5, 5]

for each task of the samples, and over all of them; a request's ``task_id`` says whose weights it gets. The search
begins with equal weights, and the best of all weights that were tried are kept, so the mix is never worse than the
uniform one on those samples. With ``weights="uniform"`` nothing is searched.

After Lotfi et al. (2026), who compare uniform and learnt merging with routing; of their paper only the abstract was
at hand, so how the weights are learnt is ours: NGOpt of nevergrad on bounded logits, which with 40 to 200 evaluations
of synthetic losses over 8 to 64 experts got nearer to the optimum than without bounds or than by coordinate search.

Cost: fitting, `budget` evaluations of each task's samples and as many of all together; a request, one look-up.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from scipy.special import softmax

from routers.base import MethodCard
from routers.families.static_mix import MeanLoss, StaticMixConfig, StaticMixRouter, Weights, search

_MAX_LOGIT = 5.0


class LearnedMixConfig(StaticMixConfig):
    """Options of `learned_mix`."""

    weights: Literal["uniform", "learned"] = Field("learned", description="Equal weights, or searched ones.")
    max_samples: int = Field(16, ge=1, le=1000, description="Samples of a task that count, evenly taken.")
    budget: int = Field(
        100, ge=1, description="Weights that are tried for a task, the equal ones among them; at most 50 an expert."
    )


class LearnedMixRouter(StaticMixRouter):
    """Learnt weights for each task; see the module's docstring."""

    card: ClassVar[MethodCard] = MethodCard(
        name="learned_mix",
        title="A mix learnt for each task",
        paper="Lotfi et al., trade-offs of ensembling, merging and routing, 2026 (arXiv:2603.03535), its abstract",
        expert_training="independent",
        expert_data="private",
        routing_dataset="prompts with answers of each task",
        input_granularity="task",
        depth="model",
        selection="dense",
        aggregation="parameters",
        generalization="the tasks of the samples; others get the mix over all",
        user_dataset="prompts with answers of each task",
        needs=("samples", "engine"),
        needs_embedding=False,
        refit="costly",
        cost="one look-up; fitting evaluates each task's samples 100 times",
        differences=("how the weights are searched is not the paper's, which was not at hand",),
    )
    config_class: ClassVar[type[StaticMixConfig]] = LearnedMixConfig
    by_task: ClassVar[bool] = True

    @classmethod
    def find(cls, config: LearnedMixConfig, loss: MeanLoss, num_experts: int) -> Weights:
        """The best of the weights that were tried."""
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
