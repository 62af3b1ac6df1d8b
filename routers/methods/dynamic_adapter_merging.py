"""Router `dynamic_adapter_merging`: the two experts whose data the base sees most alike, merged (Cheng et al. 2024).

    h(x)     = mean of the base's hidden states over x's tokens, standardised over the
               library's examples (`routers.families.standardised_states`), as a unit vector              (d,)
    score(e) = h(q) · c_e,   c_e = mean of h over e's examples, as a unit vector         (E,)
    weight   = softmax(score / T) over the k = 2 best,   T = 0.01

No encoder besides the base is needed, and nothing is trained. The code keeps the k best scores, sets the others to
-inf and takes the softmax, as here. It then averages the adapters' down- and up-projections each by itself with these
weights: ``merge`` is ``ab``. The default is the weighted sum of the experts' updates (``exact``), which does not mix
one expert's A with another's B. There, examples count with the length of their hidden states; here all have length one.
The paper does not standardise (``standardise=false``), and never abstains. Plain hidden states point much the same way,
strangers' too: on public tasks (docs/measurements/policies.md) they ranked the right expert first for 49 % of bare
prompts and reached it for 10 %; standardised ones 68 and 59 %. With cosines so much further apart T = 0.01 gives nearly
all weight to the first expert.

Cost: the prompt's hidden states (the embedder of the policy is the base) and one product with E centroids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from routers.base import MAX_EXPERTS, GateChoice, MethodCard, ScoredExpert, WeightedExpert
from routers.families.scoring import (
    WEIGHTED_FUSION,
    Closeness,
    Learned,
    Prompts,
    Scores,
    ScoringConfig,
    softmax_weights,
)
from routers.families.standardised_states import StateScale
from routers.library.examples import Examples
from routers.methods.centroid import CentroidRouter, MeanConfig


class DynamicAdapterMergingConfig(MeanConfig):
    """Options of `dynamic_adapter_merging`."""

    merge: Literal["exact", "ab"] = Field(
        "exact", description="Sum the experts' updates with the weights, or their A and their B each (the paper's way)."
    )
    top_k: int = Field(2, ge=1, le=MAX_EXPERTS, description="Experts that are merged.")
    temperature: float = Field(0.01, gt=0, description="Weights are softmax(score / temperature).")
    normalise: bool = Field(True, description="Compare with the mean's direction instead of with the mean.")
    standardise: bool = Field(
        True,
        description="Take hidden states from the library's mean and in units of its spread (the paper: as they are).",
    )


class DynamicAdapterMergingRouter(CentroidRouter):
    """Nearest means of the base's hidden states, merged; see the module's docstring."""

    card: ClassVar[MethodCard] = replace(
        CentroidRouter.card,
        name="dynamic_adapter_merging",
        title="Dynamic Adapter Merging: nearest means of hidden states",
        paper="Cheng et al., DAM, 2024 (arXiv:2403.08755), and its code",
        selection="top-k",
        aggregation="parameters",
        generalization="in-domain prompts and those between two domains",
        embedder="base",
        cost="the prompt's hidden states; one product with E means",
        differences=(
            "the experts' updates are summed; A and B each by itself is the option merge=ab",
            "hidden states are standardised over the library's examples; as they are is the option standardise=false",
            "each example's hidden states are brought to unit length before the mean",
            "it may abstain",
        ),
    )
    config_class: ClassVar[type[ScoringConfig]] = DynamicAdapterMergingConfig
    closeness: ClassVar[Closeness] = "unused"  # all hidden states lie in a few directions

    @classmethod
    def learn(cls, config: DynamicAdapterMergingConfig, examples: Examples) -> Learned:
        """The scale of hidden states, and means on it."""
        scale = StateScale.of(examples) if config.standardise else StateScale.unchanged(examples.embeddings.shape[1])
        learned = super().learn(config, replace(examples, embeddings=scale(examples.embeddings)))
        return replace(learned, arrays={**learned.arrays, **scale.arrays()})

    def prepare(self, learned: Learned) -> None:
        """Take scale and means."""
        super().prepare(learned)
        self._scale = StateScale.load(learned.arrays)

    def scores(self, prompts: Prompts) -> Scores:
        """Cosines on the library's scale."""
        return super().scores(replace(prompts, embeddings=self._scale(prompts.embeddings)))

    def choose(self, ranked: Sequence[ScoredExpert]) -> tuple[tuple[WeightedExpert, ...], GateChoice | None]:
        """The best k, weighted."""
        weights = softmax_weights(ranked[: self.config.top_k], self.config.temperature)
        return weights, WEIGHTED_FUSION if self.config.merge == "ab" else None
