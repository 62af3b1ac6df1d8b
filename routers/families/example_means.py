"""Routers that compare a prompt with the mean of each expert's example embeddings.

    score(e) = q · mean(X_e)        the mean cosine of the prompt to the expert's examples

The mean is not scaled to unit length, so the score is the mean pairwise cosine, which is small for an expert with
varied examples. With ``normalise`` it is the cosine to the mean's direction, as in mttl and Mo'LoRA.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from routers.families.options import CalibrationOptions
from routers.families.scoring import Closeness, Learned, Prompts, Scores, ScoringRouter
from routers.library.examples import Examples, evenly
from routers.maths.unit_rows import to_unit


class MeanConfig(CalibrationOptions):
    """Options of routers that compare with the mean of an expert's examples."""

    normalise: bool = Field(False, description="Compare with the mean's direction instead of with the mean.")


class MeanRouter(ScoringRouter):
    """Base of routers that score an expert by the product of the prompt with the mean of its examples."""

    closeness: ClassVar[Closeness] = "half"
    max_examples: ClassVar[int | None] = None
    """Number of examples of an expert that count, evenly spaced; None for all."""

    @classmethod
    def learn(cls, config: Any, examples: Examples) -> Learned:
        """Average each expert's examples, shape (E, d)."""
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
        """Multiply the prompts with the means."""
        return np.asarray(prompts.embeddings @ self._means.T, np.float64)
