"""Router `best_single`: for every prompt the one model, expert or base, with the best mean score over labelled tasks.

    score(m) = mean over tasks of the mean of m's known scores on the task's prompts

What a library is worth without routing: PHATGOOSE's best individual expert, benchmark routing's best model on average
(Shnitzer et al., 2023). Every task weighs the same however many prompts it has. A model without any known
score in one of the tasks is not compared, for it could win by missing a hard one. The best is sought among what the
caller may use. Where the base is as good as the best of those, the base answers; a table without the base is no
reason to abstain. Confidence is the best expert's score.

Shapes: n prompts, M models. Cost: a look at E numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from routers.artefacts import check_router
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
from routers.errors import BadArtefact, NotFittable


class BestSingleConfig(RouterConfig):
    """Options of `best_single`."""

    max_candidates: int = Field(10, ge=1, description="How many scored experts a decision lists.")


class BestSingleRouter:
    """The best model on average; see the module's docstring."""

    card: ClassVar[MethodCard] = MethodCard(
        name="best_single",
        title="The best model on average",
        paper="baseline: best individual expert, as in Muqeeth et al., 2024",
        expert_training="any",
        expert_data="none",
        routing_dataset="labelled prompts that every expert answered",
        input_granularity="task",
        depth="model",
        selection="top-1",
        aggregation="none",
        generalization="none: one model for all prompts",
        user_dataset="none",
        needs=("scores",),
        needs_embedding=False,
        cost="a look at E numbers",
    )
    config_class: ClassVar[type[RouterConfig]] = BestSingleConfig

    def __init__(self, config: BestSingleConfig, experts: Sequence[str], scores: NDArray[np.float64]) -> None:
        """Scores of the base and of the experts, shape (1 + E,)."""
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
        """From `fit`; raises `BadArtefact`."""
        check_router(artefact, cls.card.name)
        try:
            experts = [str(expert) for expert in artefact.data["experts"]]
            scores = np.asarray(artefact.arrays["scores"], np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise BadArtefact(f"a {cls.card.name} artefact lacks or garbles {error}") from error
        if scores.shape != (1 + len(experts),):
            raise BadArtefact(f"{len(experts)} experts and scores of shape {scores.shape} do not fit together")
        return cls(config, experts, scores)

    def route(self, query: RouteQuery) -> Decision:
        """The best that may be used."""
        allowed = [ScoredExpert(expert, score) for expert, score in self._ranked if query.allows(expert)]
        if not allowed:
            return Decision((), 0.0, reason="No expert that may be used has a score in every task.")
        best = allowed[0]
        listed = tuple(allowed[: self._config.max_candidates])
        confidence = min(max(best.score, 0.0), 1.0)
        found = f"Best mean score {best.score:.3f} ({best.expert_id})"
        if self._base >= best.score:
            return Decision((), confidence, listed, reason=f"{found} is not above the base's {self._base:.3f}.")
        return Decision((WeightedExpert(best.expert_id),), confidence, listed, reason=f"{found}.")


def mean_scores(table: ScoreTable) -> NDArray[np.float64]:
    """Mean over tasks of each model's mean on the task, shape (M,); NaN where a model has no score in some task.

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
