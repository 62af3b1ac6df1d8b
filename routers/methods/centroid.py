"""Router `centroid`: the expert whose examples' mean is nearest to the prompt.

    score(e) = q · mean(X_e)        the mean cosine of the prompt to the expert's examples

The mean is not brought to unit length: then the score is the mean pairwise cosine, which is small for an expert whose
examples have little in common. With ``normalise`` it is the cosine to the mean's direction, as mttl and Mo'LoRA take
it. `SelectionConfig` says what is made of the scores: the best expert, or a mix of the k best.

Options come in two parts, so that a method takes only those that it reads: `MeanConfig` for methods that compare with
means, `SelectionConfig` for those that turn scores into one expert or several.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from routers.base import MAX_EXPERTS, GateChoice, MethodCard, ScoredExpert, WeightedExpert
from routers.families.scoring import (
    FUSION,
    Closeness,
    Learned,
    Prompts,
    Scores,
    ScoringConfig,
    ScoringRouter,
    equal_weights,
    softmax_weights,
)
from routers.library.examples import Examples, evenly
from routers.maths.unit_rows import to_unit


class SelectionConfig(ScoringConfig):
    """Options of routers that turn scores into one expert or a mix."""

    selection: Literal["top-1", "mixture", "fusion"] = Field(
        "top-1",
        description="What is executed: the best expert; the weighted sum of the k best (mixture); or the k best with "
        "their A and their B averaged each by itself (fusion).",
    )
    top_k: int = Field(3, ge=1, le=MAX_EXPERTS, description="Experts in a mixture or fusion.")
    temperature: float | None = Field(
        None, gt=0, description="Weights of a mixture are softmax(score / temperature); unset: all the same."
    )


class MeanConfig(ScoringConfig):
    """Options of routers that compare with the mean of an expert's examples."""

    normalise: bool = Field(False, description="Compare with the mean's direction instead of with the mean.")


class CentroidConfig(SelectionConfig, MeanConfig):
    """Options of `centroid`."""


class CentroidRouter(ScoringRouter):
    """Nearest mean of examples; see the module's docstring."""

    card: ClassVar[MethodCard] = MethodCard(
        name="centroid",
        title="Nearest mean of example prompts",
        paper="baseline in mttl and in most embedding routers",
        expert_training="independent",
        expert_data="private; a few example prompts are shared",
        routing_dataset="example prompts of each expert",
        input_granularity="example",
        depth="model",
        selection="top-1",
        aggregation="none",
        generalization="in-domain prompts; abstains on others",
        user_dataset="none",
        needs=("examples",),
        cost="one product with E means",
    )
    config_class: ClassVar[type[ScoringConfig]] = CentroidConfig
    closeness: ClassVar[Closeness] = "half"
    max_examples: ClassVar[int | None] = None
    """Examples of an expert that count, evenly taken; None for all."""

    @classmethod
    def learn(cls, config: Any, examples: Examples) -> Learned:
        """The means, shape (E, d)."""
        if cls.max_examples is not None:
            examples = examples.take(evenly(examples, cls.max_examples))
        means = examples.mean_of_experts()
        if config.normalise:
            means = to_unit(means)
        return Learned({"means": means})

    def prepare(self, learned: Learned) -> None:
        """Take the means."""
        self._means = np.asarray(learned.arrays["means"], np.float32)
        if self._means.shape[:1] != (len(self.experts),):
            raise ValueError(f"means of shape {self._means.shape} for {len(self.experts)} experts")

    def scores(self, prompts: Prompts) -> Scores:
        """Dot products."""
        return np.asarray(prompts.embeddings @ self._means.T, np.float64)

    def choose(self, ranked: Sequence[ScoredExpert]) -> tuple[tuple[WeightedExpert, ...], GateChoice | None]:
        """As `SelectionConfig` says."""
        if self.config.selection == "top-1":
            return super().choose(ranked)
        best = ranked[: self.config.top_k]
        if self.config.selection == "fusion":
            return equal_weights(best), FUSION
        if self.config.temperature is None:
            return equal_weights(best), None
        return softmax_weights(best, self.config.temperature), None
