"""Router `best_single`: for every prompt the one model, expert or base, with the best mean score over labelled tasks.

    score(m) = mean over tasks of the mean of m's known scores on the task's prompts

This is the value of a library without routing: PHATGOOSE's best individual expert, and the best model on average in
benchmark routing (Shnitzer et al., 2023). Every task has the same weight, whatever its number of prompts. A model
without a known score in one of the tasks is not compared, because it could win by missing a hard one. The best is
chosen among the experts that the caller may use. If the base is at least as good, the base answers; if the table lacks
the base, that is not a reason to abstain. Confidence is the best expert's score.

Shapes: n prompts, M models. Cost: reading E numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from routers.artefacts import reading
from routers.base import (
    BASE,
    Artefact,
    Decision,
    FitData,
    MethodCard,
    Progress,
    RouteQuery,
    RouterConfig,
    ScoredExpert,
    ScoreTable,
    WeightedExpert,
)
from routers.errors import NotFittable
from routers.families.cards import BASELINE_CARD
from routers.families.options import CandidateOptions


class BestSingleConfig(CandidateOptions):
    """Options of `best_single`."""


class BestSingleRouter:
    """Routes every prompt to the model with the best mean score over tasks."""

    card: ClassVar[MethodCard] = replace(
        BASELINE_CARD,
        name="best_single",
        title="The best model on average",
        paper="baseline: best individual expert, as in Muqeeth et al., 2024",
        routing_dataset="labelled prompts that every expert answered",
        generalization="none: one model for all prompts",
        needs=("scores",),
        cost="reading E numbers",
    )
    config_class: ClassVar[type[RouterConfig]] = BestSingleConfig

    def __init__(self, config: BestSingleConfig, experts: Sequence[str], scores: NDArray[np.float64]) -> None:
        """Take the scores of the base and of the experts, shape (1 + E,)."""
        self._config = config
        self._base = float(scores[0])
        known = [pair for pair in zip(experts, scores[1:].tolist(), strict=True) if np.isfinite(pair[1])]
        self._ranked = sorted(known, key=lambda pair: (-pair[1], pair[0]))

    @classmethod
    def fit(cls, config: BestSingleConfig, data: FitData, progress: Progress) -> Artefact:
        """Average the table; experts that are no longer in the library are left out."""
        if data.scores is None:
            raise NotFittable("there is no table of scores to compare the models by")
        of_model = dict(zip(data.scores.models, mean_scores(data.scores).tolist(), strict=True))
        experts = sorted(expert.expert_id for expert in data.experts)
        scores = np.array([of_model.get(model, np.nan) for model in (BASE, *experts)], np.float64)
        return Artefact(cls.card.name, {"scores": scores}, {"experts": experts}, data.version, data.embedder)

    @classmethod
    def load(cls, config: BestSingleConfig, artefact: Artefact) -> Self:
        """Build the router from an artefact of `fit`; raises `BadArtefact`."""
        with reading(artefact, cls.card.name):
            experts = [str(expert) for expert in artefact.data["experts"]]
            scores = np.asarray(artefact.arrays["scores"], np.float64)
            if scores.shape != (1 + len(experts),):
                raise ValueError(f"scores of shape {scores.shape} for {len(experts)} experts")
        return cls(config, experts, scores)

    def route(self, query: RouteQuery) -> Decision:
        """Choose the best allowed expert, or abstain if the base is at least as good."""
        allowed = [ScoredExpert(expert, score) for expert, score in self._ranked if query.allows(expert)]
        if not allowed:
            return Decision((), 0.0, reason="No allowed expert has a score in every task.")
        best = allowed[0]
        listed = tuple(allowed[: self._config.max_candidates])
        confidence = min(max(best.score, 0.0), 1.0)
        found = f"Best mean score {best.score:.3f} ({best.expert_id})"
        if self._base >= best.score:
            return Decision((), confidence, listed, reason=f"{found} does not exceed the base's {self._base:.3f}.")
        return Decision((WeightedExpert(best.expert_id),), confidence, listed, reason=f"{found}.")


def mean_scores(table: ScoreTable) -> NDArray[np.float64]:
    """Average each model's task means over tasks, shape (M,); NaN if a task lacks a score of the model.

    A task in which no model has a score does not count.
    """
    known = np.isfinite(table.scores)
    scores = np.where(known, table.scores, 0.0)
    task_of = np.array([sample.task for sample in table.samples])
    means = []
    for task in np.unique(task_of):
        rows = task_of == task
        if known[rows].any():
            with np.errstate(invalid="ignore"):
                means.append(scores[rows].sum(axis=0) / known[rows].sum(axis=0))
    return np.mean(means, axis=0) if means else np.full(len(table.models), np.nan)
