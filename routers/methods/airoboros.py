"""Router `airoboros`: the expert with the smallest mean distance to its k nearest examples (airoboros, 2023).

    distance(e) = mean of the k smallest ‖q - x‖² over e's examples,   k = 20, at most 1000 examples

FAISS's flat L2 index, which the project uses, gives squared distances, so those are averaged. Vectors are of unit
length, ‖q - x‖² = 2 - 2 q·x, so the score shown, 1 - distance / 2, is the mean of the k largest cosines. An expert with
fewer than k examples is scored by those it has. Texts of more than 512 tokens are cut into pieces there, whose
vectors are averaged by length; here the embedder sees the prompt's view at once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
from pydantic import Field

from routers.base import MethodCard
from routers.families.scoring import Learned, Prompts, Scores, ScoringConfig, ScoringRouter
from routers.library.examples import Examples, evenly
from routers.maths.nearest_rows import nearest_mean, places_of
from routers.methods.centroid import CentroidRouter


class AiroborosConfig(ScoringConfig):
    """Options of `airoboros`."""

    k: int = Field(20, ge=1, le=1000, description="Nearest examples of each expert that count.")
    max_examples: int = Field(1000, ge=1, description="Examples of an expert that are kept.")


class AiroborosRouter(ScoringRouter):
    """Mean distance of an expert's k nearest examples; see the module's docstring."""

    card: ClassVar[MethodCard] = replace(
        CentroidRouter.card,
        name="airoboros",
        title="Mean distance of each expert's nearest examples",
        paper="Durbin, airoboros (LMoE), 2023, its code",
        expert_data="private; example prompts are shared",
        generalization="in-domain prompts",
        cost="one product with all examples",
        differences=("the gateway's embedder instead of gte-small", "it may abstain"),
    )
    config_class: ClassVar[type[ScoringConfig]] = AiroborosConfig

    @classmethod
    def learn(cls, config: AiroborosConfig, examples: Examples) -> Learned:
        """The examples themselves, those of an expert together."""
        kept = examples.take(evenly(examples, config.max_examples))
        order = np.argsort(kept.owner, kind="stable")
        return Learned({"embeddings": kept.embeddings[order], "owner": kept.owner[order]})

    def prepare(self, learned: Learned) -> None:
        """Find where each expert's examples begin and end."""
        self._embeddings = np.asarray(learned.arrays["embeddings"], np.float32)
        owner = np.asarray(learned.arrays["owner"])
        if len(owner) != len(self._embeddings):
            raise ValueError("examples and owners of different numbers")
        self._places = places_of(owner, len(self.experts))

    def scores(self, prompts: Prompts) -> Scores:
        """Mean of the k largest cosines."""
        return nearest_mean(prompts.embeddings @ self._embeddings.T, self._places, self.config.k)
