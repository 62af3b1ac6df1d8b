"""Router `adapter_soup`: the five experts most similar to a task's prompts, averaged (Chronopoulou et al., 2023).

With ``cosine``, over up to 100 examples of each expert:

    score(e) = mean over the prompts, and over e's examples, of their cosine

With a Gaussian mixture (``gmm``), fitted to up to 100 examples of each expert, with one cluster per expert:

    share(c, e) = part of e's examples that are in cluster c, over the same summed over experts       (C, E)
    score(e)    = mean of share(c(q), e) over the prompts q, where c(q) is q's cluster

Experts win whose examples fill the clusters that are hit most. An expert with no example in a cluster that is hit is
left out of the soup. Embeddings are projected on their principal components first (`routers.maths.gaussian_mixture`),
and experts count equally whatever their number of examples. Clusters cannot detect out-of-scope prompts: any prompt
falls into one. So with ``gmm`` the base answers only where a cluster belongs to several experts.

The prompts are the last ones of the caller's ``task_id``, or the request's alone without a ``task_id``; the paper takes
100 of a new domain. ``fusion`` averages the A matrices and the B matrices of the best experts. The threshold is
calibrated on single prompts.

Shapes: E experts, C clusters, t prompts, d dimensions. Cost: one product (t, d) with E means, or with C clusters.
Fitting a mixture takes time quadratic in the number of experts, up to 256 clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from routers.base import MAX_EXPERTS, MethodCard, ScoredExpert
from routers.families.cards import EMBEDDING_CARD
from routers.families.example_means import MeanConfig, MeanRouter
from routers.families.options import CalibrationOptions
from routers.families.scoring import Closeness, Learned, Prompts, Scores
from routers.families.selection import Chosen, SelectionConfig, select
from routers.library.examples import Examples, evenly
from routers.maths.gaussian_mixture import Mixture, fit_mixture

MAX_CLUSTERS = 256
MAX_EXAMPLES = 100


class AdapterSoupConfig(SelectionConfig, MeanConfig):
    """Options of `adapter_soup`."""

    selection_by: Literal["cosine", "gmm"] = Field(
        "cosine",
        description="Score by mean cosine, or by the clusters of a Gaussian mixture that the prompts fall into.",
    )
    selection: Literal["top-1", "mixture", "fusion"] = Field(
        "fusion", description="fusion averages A and B as the paper does; mixture is the exact mean of the experts."
    )
    top_k: int = Field(5, ge=1, le=MAX_EXPERTS, description="Experts in the soup.")
    normalise: bool = Field(
        False, description="For cosine: compare with the direction of the examples' mean instead of with the mean."
    )
    num_clusters: int | None = Field(
        None,
        ge=1,
        le=MAX_CLUSTERS,
        description="For gmm: number of clusters; unset: the number of experts, at most 256.",
    )
    num_axes: int = Field(32, ge=1, le=128, description="For gmm: number of principal components of the embeddings.")


class AdapterSoupRouter(MeanRouter):
    """Averages the experts whose examples are most similar to a task's prompts."""

    card: ClassVar[MethodCard] = replace(
        EMBEDDING_CARD,
        name="adapter_soup",
        title="AdapterSoup: the most similar experts, averaged",
        paper="Chronopoulou et al., AdapterSoup, 2023 (arXiv:2302.07027)",
        input_granularity="task",
        selection="top-k",
        aggregation="parameters",
        generalization="new domains, by averaging similar ones",
        reads_task=True,
        cost="one product of the task's prompts with E means, or with the clusters of a mixture",
        differences=(
            "a task is the last prompts with one task_id, not 100 samples",
            "the mixture of Gaussians is fitted to principal components",
            "it may abstain",
        ),
    )
    config_class: ClassVar[type[CalibrationOptions]] = AdapterSoupConfig
    closeness: ClassVar[Closeness] = "unused"  # the prompts of a task point in many directions
    max_examples: ClassVar[int | None] = MAX_EXAMPLES

    @classmethod
    def learn(cls, config: AdapterSoupConfig, examples: Examples) -> Learned:
        """Compute the means, or the mixture and the experts' shares of its clusters, (C, E)."""
        if config.selection_by == "cosine" or not examples.texts:
            return super().learn(config, examples)
        examples = examples.take(evenly(examples, MAX_EXAMPLES))
        num_clusters = config.num_clusters or min(len(np.unique(examples.owner)), MAX_CLUSTERS)
        arrays = fit_mixture(examples.embeddings, num_clusters, config.num_axes)
        clusters = Mixture(arrays).clusters(examples.embeddings)
        shares = cluster_shares(clusters, examples.owner, len(arrays["weights"]), len(examples.experts))
        return Learned({**arrays, "shares": shares.astype(np.float32)})

    def prepare(self, learned: Learned) -> None:
        """Take the means or the mixture."""
        if self.config.selection_by == "cosine":
            return super().prepare(learned)
        self._mixture = Mixture(learned.arrays)
        self._shares = np.asarray(learned.arrays["shares"], np.float64)
        if self._shares.shape != (len(learned.arrays["weights"]), len(self.experts)):
            raise ValueError(f"shares of shape {self._shares.shape} for {len(self.experts)} experts")

    def scores(self, prompts: Prompts) -> Scores:
        """Return mean cosines, or the experts' shares of each prompt's cluster."""
        if self.config.selection_by == "cosine":
            return super().scores(prompts)
        return np.asarray(self._shares[self._mixture.clusters(prompts.embeddings)])

    def choose(self, ranked: Sequence[ScoredExpert]) -> Chosen:
        """Choose the best experts; with ``gmm`` only those that have a share in the cluster."""
        if self.config.selection_by == "gmm":
            ranked = [scored for scored in ranked if scored.score > 0] or ranked[:1]
        return select(self.config, ranked)


def cluster_shares(
    clusters: NDArray[np.int64], owner: NDArray[np.int32], num_clusters: int, num_experts: int
) -> NDArray[np.float64]:
    """Return each expert's share of each cluster, shape (C, E).

    Rows sum to one, or are zero if the cluster has no example. An expert without an example has NaN.
    """
    counts = np.zeros((num_clusters, num_experts))
    np.add.at(counts, (clusters, owner), 1)
    with np.errstate(invalid="ignore"):
        parts = counts / counts.sum(axis=0)  # 0/0: an expert without an example
    totals = np.nansum(parts, axis=1, keepdims=True)
    return np.asarray(parts / np.where(totals > 0, totals, 1.0))
