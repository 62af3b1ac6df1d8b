"""Router `dynamic_adapter_merging`: the two experts whose data the base finds most similar (Cheng et al., 2024).

    h(x)     = mean of the base's hidden states over x's tokens, standardised over the
               library's examples (`routers.families.standardised_states`), as a unit vector              (d,)
    score(e) = h(q) · c_e,   c_e = mean of h over e's examples, as a unit vector         (E,)
    weight   = softmax(score / T) over the k = 2 best,   T = 0.01

The only encoder is the base, and nothing is trained. As in the authors' code, the k best scores are kept, the others
set to -inf, and the softmax taken. The code then averages the adapters' down-projections and their up-projections with
these weights; that is ``merge=ab``. The default (``exact``) is the weighted sum of the experts' updates, which does not
mix one expert's A with another's B. In the code examples count with the length of their hidden states; here all have
length one.

The paper does not standardise (``standardise=false``) and never abstains. Raw hidden states of all texts point in much
the same direction, also those of out-of-scope prompts. On public tasks (docs/measurements/policies.md) raw states
ranked the right expert first for 49 % of the bare prompts and reached it for 10 %, standardised states for 68 and 59 %.
Standardised cosines are further apart, so T = 0.01 gives nearly all weight to the first expert.

Cost: the prompt's hidden states (the policy's embedder is the base) and one product with E centroids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from routers.base import MAX_EXPERTS, MethodCard, ScoredExpert
from routers.families.cards import EMBEDDING_CARD
from routers.families.example_means import MeanConfig, MeanRouter
from routers.families.options import CalibrationOptions
from routers.families.scoring import Closeness, Learned, Prompts, Scores
from routers.families.selection import WEIGHTED_FUSION, Chosen, softmax_weights
from routers.families.standardised_states import StateScale
from routers.library.examples import Examples


class DynamicAdapterMergingConfig(MeanConfig):
    """Options of `dynamic_adapter_merging`."""

    merge: Literal["exact", "ab"] = Field(
        "exact",
        description="Sum the experts' updates with the weights (exact), or their A and their B matrices separately, as "
        "in the paper (ab).",
    )
    top_k: int = Field(2, ge=1, le=MAX_EXPERTS, description="Experts that are merged.")
    temperature: float = Field(0.01, gt=0, description="Weights are softmax(score / temperature).")
    normalise: bool = Field(True, description="Compare with the mean's direction instead of with the mean.")
    standardise: bool = Field(
        True,
        description="Standardise hidden states over the library's examples; the paper leaves them unchanged.",
    )


class DynamicAdapterMergingRouter(MeanRouter):
    """Merges the experts with the nearest means of the base's hidden states."""

    card: ClassVar[MethodCard] = replace(
        EMBEDDING_CARD,
        name="dynamic_adapter_merging",
        title="Dynamic Adapter Merging: nearest means of hidden states",
        paper="Cheng et al., DAM, 2024 (arXiv:2403.08755), and its code",
        selection="top-k",
        aggregation="parameters",
        generalization="in-domain prompts and those between two domains",
        embedder="base",
        cost="the prompt's hidden states; one product with E means",
        differences=(
            "the experts' updates are summed; the option merge=ab averages A and B separately",
            "hidden states are standardised over the library's examples; the option standardise=false turns that off",
            "each example's hidden states are scaled to unit length before the mean",
            "it may abstain",
        ),
    )
    config_class: ClassVar[type[CalibrationOptions]] = DynamicAdapterMergingConfig
    closeness: ClassVar[Closeness] = "unused"  # all hidden states point in much the same few directions

    @classmethod
    def learn(cls, config: DynamicAdapterMergingConfig, examples: Examples) -> Learned:
        """Find the scale of hidden states, and average them on it."""
        scale = StateScale.of(examples) if config.standardise else StateScale.unchanged(examples.embeddings.shape[1])
        learned = super().learn(config, replace(examples, embeddings=scale(examples.embeddings)))
        return replace(learned, arrays={**learned.arrays, **scale.arrays()})

    def prepare(self, learned: Learned) -> None:
        """Take scale and means."""
        super().prepare(learned)
        self._scale = StateScale.load(learned.arrays)

    def scores(self, prompts: Prompts) -> Scores:
        """Return cosines of the standardised states."""
        return super().scores(replace(prompts, embeddings=self._scale(prompts.embeddings)))

    def choose(self, ranked: Sequence[ScoredExpert]) -> Chosen:
        """Choose the best k, with softmax weights."""
        weights = softmax_weights(ranked[: self.config.top_k], self.config.temperature)
        return weights, WEIGHTED_FUSION if self.config.merge == "ab" else None
