"""Router `airoboros`: the expert with the smallest mean distance to its k nearest examples (airoboros, 2023).

    distance(e) = mean of the k smallest ‖q - x‖² over e's examples,   k = 20, at most 1000 examples

The project uses FAISS's flat L2 index, which returns squared distances, so squared distances are averaged. Vectors have
unit length, so ‖q - x‖² = 2 - 2 q·x and the score, 1 - distance / 2, is the mean of the k largest cosines. An expert
with fewer than k examples is scored by those it has. The project splits texts of more than 512 tokens and averages the
vectors of the pieces by length; here the embedder receives the whole view of the prompt.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
from pydantic import Field

from routers.base import MethodCard
from routers.families.cards import EMBEDDING_CARD
from routers.families.options import CalibrationOptions
from routers.families.scoring import Learned, Prompts, Scores, ScoringRouter
from routers.library.examples import Examples, evenly
from routers.maths.nearest_rows import nearest_mean, places_of


class AiroborosConfig(CalibrationOptions):
    """Options of `airoboros`."""

    k: int = Field(20, ge=1, le=1000, description="Number of nearest examples of each expert that count.")
    max_examples: int = Field(1000, ge=1, description="Number of examples of an expert that are kept, at most.")


class AiroborosRouter(ScoringRouter):
    """Routes to the expert with the smallest mean distance to its k nearest examples."""

    card: ClassVar[MethodCard] = replace(
        EMBEDDING_CARD,
        name="airoboros",
        title="Mean distance of each expert's nearest examples",
        paper="Durbin, airoboros (LMoE), 2023, its code",
        expert_data="private; example prompts are shared",
        generalization="in-domain prompts",
        cost="one product with all examples",
        differences=("the gateway's embedder instead of gte-small", "it may abstain"),
    )
    config_class: ClassVar[type[CalibrationOptions]] = AiroborosConfig

    @classmethod
    def learn(cls, config: AiroborosConfig, examples: Examples) -> Learned:
        """Keep the examples, sorted by expert."""
        kept = examples.take(evenly(examples, config.max_examples))
        order = np.argsort(kept.owner, kind="stable")
        return Learned({"embeddings": kept.embeddings[order], "owner": kept.owner[order]})

    def prepare(self, learned: Learned) -> None:
        """Find the rows of each expert's examples."""
        self._embeddings = np.asarray(learned.arrays["embeddings"], np.float32)
        owner = np.asarray(learned.arrays["owner"])
        if len(owner) != len(self._embeddings):
            raise ValueError(f"{len(self._embeddings)} examples with {len(owner)} owners")
        self._places = places_of(owner, len(self.experts))

    def scores(self, prompts: Prompts) -> Scores:
        """Average the k largest cosines of each expert."""
        return nearest_mean(prompts.embeddings @ self._embeddings.T, self._places, self.config.k)
