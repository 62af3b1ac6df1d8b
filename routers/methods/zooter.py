"""Router `zooter`: the model that a small classifier names, trained on all models' scores (Lu et al., 2023).

    s_i      = softmax(r_i / T)                          over the models whose score r of prompt i is known   (M,)
    target_i = β s_i + (1 - β) · mean of s over the prompts with i's tag                                      (M,)
    P(m | q) = softmax(W q + b)_m                        W and b by Kullback-Leibler divergence to the targets

The best of the base and the allowed experts is chosen; if it is the base, the router abstains. Scores of single prompts
are noisy, and the tag (the prompt's task, or its k-means cluster if it has none) smooths them. As in the paper, β is
the share of the prompt's own scores, 0.3 by default: 0 uses only the tag's, 1 only the prompt's. A model whose score of
a prompt is unknown is left out of that prompt's softmax, in the target and in the classifier.

The paper has no temperature (T = 1) and takes rewards from a reward model; here they are metrics in [0, 1]. With such
scores T = 1 makes flat targets, and the model with the best mean score leads in their means. A smaller T favours the
model that is most often the best.

Shapes: n labelled prompts, M = 1 + E models, d dimensions. Cost: M · d multiplications per request; fitting takes
seconds. The authors published no code.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from routers.base import Floats, MethodCard, Progress, RouteQuery
from routers.families.cards import SCORE_TABLE_CARD
from routers.families.score_table import (
    NUM_CLUSTERS,
    Mask,
    Scored,
    TableConfig,
    TableRouter,
    Values,
    tags_of,
)
from routers.families.scoring import Learned
from routers.maths.softmax_regression import fit_softmax, log_softmax


class ZooterConfig(TableConfig):
    """Options of `zooter`."""

    temperature: float = Field(1.0, gt=0, description="Temperature T of the softmax that turns scores into targets.")
    beta: float = Field(
        0.3, ge=0, le=1, description="Share of a prompt's own scores in its target; the rest is its tag's mean."
    )
    num_clusters: int = Field(NUM_CLUSTERS, ge=1, description="Clusters that tag the prompts without a task.")
    ridge: float = Field(1e-3, gt=0, description="Weight of the penalty on W; larger values are smoother.")


class ZooterRouter(TableRouter):
    """Routes to the model that a softmax classifier, trained on all models' scores, finds most probable."""

    card: ClassVar[MethodCard] = replace(
        SCORE_TABLE_CARD,
        name="zooter",
        title="Zooter: distilled rewards",
        paper="Lu et al., Routing to the Expert: Efficient Reward-guided Ensemble of Large Language Models, 2023 "
        "(arXiv:2311.08692)",
        cost="one product with M rows",
        differences=(
            "a linear softmax on the frozen embedding instead of mDeBERTa-v3",
            "scores by metrics on labelled prompts instead of a reward model's",
            "the tag is the task or a cluster of the embedding, one a prompt, instead of a tagger's several",
            "models without a score are left out of a prompt's softmax",
            "the divergence is taken from the targets to the classifier, as in distillation, which is convex",
        ),
    )
    config_class: ClassVar[type[TableConfig]] = ZooterConfig

    @classmethod
    def learn(cls, config: ZooterConfig, scored: Scored, progress: Progress) -> Learned:
        """Fit W, shape (M, d), and b, shape (M,)."""
        targets = smoothed_targets(scored.scores, tags_of(scored, config.num_clusters), config.temperature, config.beta)
        progress(0, 1)
        weights, bias = fit_softmax(scored.embeddings.astype(np.float64), targets, config.ridge, scored.known)
        progress(1, 1)
        return Learned({"weights": weights, "bias": bias})

    def prepare(self, learned: Learned) -> None:
        """Take W and b."""
        self._weights, self._bias = (np.asarray(learned.arrays[name], np.float64) for name in ("weights", "bias"))
        num_models = 1 + len(self.experts)
        if self._weights.shape[:1] != (num_models,) or self._bias.shape != (num_models,) or self._weights.ndim != 2:
            raise ValueError(f"weights of shape {self._weights.shape} for {num_models} models")

    def values(self, query: RouteQuery, allowed: Mask) -> Values:
        """Return probabilities among the allowed models."""
        logits = self._weights @ np.asarray(query.embedding, np.float64) + self._bias
        odds = np.exp(log_softmax(np.where(allowed, logits, -np.inf)))
        return Values(odds, odds, "Probability of being best is")


def smoothed_targets(scores: Floats, tags: NDArray[np.int64], temperature: float, beta: float) -> Floats:
    """Return the target distribution of each prompt, shape (n, M): zero for unknown scores, rows sum to one."""
    known = np.isfinite(scores)
    own = np.exp(log_softmax(np.where(known, scores / temperature, -np.inf)))
    sums, counts = (np.zeros((int(tags.max(initial=-1)) + 1, scores.shape[1])) for _ in range(2))
    np.add.at(sums, tags, own)
    np.add.at(counts, tags, known)
    of_tag = (sums / np.maximum(counts, 1))[tags]
    mixed = np.where(known, beta * own + (1 - beta) * of_tag, 0.0)
    return np.asarray(mixed / mixed.sum(axis=1, keepdims=True), np.float64)
