"""Router `classifier`: a linear classifier on the prompt's embedding, trained to name the expert.

    score(e) = P(e | q) = softmax(W q + b)_e

This is mttl's task classifier. There it has two linear layers without a non-linearity between them (384 → 768 → E),
which is one linear layer, trained with Adam on the task's name. Here the same model is fitted to its optimum by
logistic regression (scikit-learn, L-BFGS), with classes weighted as if all had the same number of examples.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
from pydantic import Field
from sklearn.linear_model import LogisticRegression

from routers.base import MethodCard
from routers.families.cards import EMBEDDING_CARD
from routers.families.options import CalibrationOptions
from routers.families.scoring import Closeness, Learned, Prompts, Scores, ScoringRouter
from routers.library.examples import Examples


class ClassifierConfig(CalibrationOptions):
    """Options of `classifier`."""

    inverse_regularisation: float = Field(
        30.0, gt=0, description="C of the logistic regression; larger values fit the examples more closely."
    )


class ClassifierRouter(ScoringRouter):
    """Routes to the expert that a linear classifier on the embedding names."""

    card: ClassVar[MethodCard] = replace(
        EMBEDDING_CARD,
        name="classifier",
        title="Linear classifier on embeddings",
        paper="task classifier of mttl (Ostapenko et al., 2024)",
        expert_data="private; example prompts are shared",
        generalization="in-domain prompts",
        refit="costly",
        cost="one product with E rows",
        differences=("fitted to the optimum by L-BFGS", "it may abstain"),
    )
    config_class: ClassVar[type[CalibrationOptions]] = ClassifierConfig
    closeness: ClassVar[Closeness] = "whole"  # scores are probabilities

    @classmethod
    def learn(cls, config: ClassifierConfig, examples: Examples) -> Learned:
        """Fit W, shape (C, d), and b, shape (C,), for the C experts that have examples."""
        classes = np.unique(examples.owner)
        dim = examples.embeddings.shape[1]
        weights, bias = np.zeros((len(classes), dim)), np.zeros(len(classes))
        if len(classes) > 1:
            model = LogisticRegression(C=config.inverse_regularisation, class_weight="balanced", max_iter=500)
            model.fit(examples.embeddings.astype(np.float64), examples.owner)
            weights, bias = model.coef_, model.intercept_
            if len(classes) == 2:  # scikit-learn keeps one row for two classes, the second's; give half to each
                weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
        arrays = {"weights": weights.astype(np.float32), "bias": bias.astype(np.float32)}
        return Learned({**arrays, "classes": classes.astype(np.int32)})

    def prepare(self, learned: Learned) -> None:
        """Take the weights."""
        self._weights, self._bias = (np.ascontiguousarray(learned.arrays[name]) for name in ("weights", "bias"))
        self._classes = np.asarray(learned.arrays["classes"])
        if not len(self._weights) == len(self._bias) == len(self._classes):
            raise ValueError("weights, bias and classes of different lengths")

    def scores(self, prompts: Prompts) -> Scores:
        """Return probabilities; NaN for experts without an example."""
        found = np.full((len(prompts.embeddings), len(self.experts)), np.nan)
        if len(self._classes):
            logits = np.asarray(prompts.embeddings @ self._weights.T + self._bias, np.float64)
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            found[:, self._classes] = odds / odds.sum(axis=1, keepdims=True)
        return found
