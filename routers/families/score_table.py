"""Base of routers that learn from the table of scores: reading it, comparing experts with the base, explaining.

A method says what it learns from the table and how it values every model for a prompt. The best model is chosen; if it
is the base, the router abstains::

    class ZooterRouter(TableRouter):
        card = replace(SCORE_TABLE_CARD, ...)
        config_class = ZooterConfig

        @classmethod
        def learn(cls, config, scored, progress) -> Learned: ...

        def prepare(self, learned) -> None: ...

        def values(self, query, allowed) -> Values: ...

Shapes: n labelled prompts, d dimensions, E experts, M = 1 + E models, the base first. An expert that is not in the
table, because it was added later, is never chosen. A tie goes to the base, then to the model with the better mean score
over the table, then to the first by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from routers.artefacts import reading
from routers.base import (
    BASE,
    Artefact,
    Decision,
    FitData,
    Floats,
    Matrix,
    MethodCard,
    Progress,
    RouteQuery,
    ScoredExpert,
    WeightedExpert,
)
from routers.errors import NotFittable
from routers.families.options import CandidateOptions
from routers.families.scoring import Learned

Mask = NDArray[np.bool_]

NUM_CLUSTERS = 16


class TableConfig(CandidateOptions):
    """Options of every router that learns from the table of scores."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The part of the table that concerns the current library.

    Attributes:
        experts: Ids of the library's experts that have a score, sorted, shape (E,).
        embeddings: Embeddings of the prompts, shape (n, d).
        scores: Scores, shape (n, M); NaN if unknown. Column 0 is the base, all NaN if the table lacks it.
        tasks: Task of each prompt, shape (n,); empty if unknown.
        texts: The prompts, shape (n,).
    """

    experts: tuple[str, ...]
    embeddings: Matrix
    scores: Floats
    tasks: tuple[str, ...]
    texts: tuple[str, ...]

    @property
    def known(self) -> Mask:
        """Which scores are known, shape (n, M)."""
        return np.isfinite(self.scores)

    def means(self) -> Floats:
        """Return the mean known score of every model, shape (M,); NaN for a model without one."""
        counts = self.known.sum(axis=0)
        sums = np.where(self.known, self.scores, 0.0).sum(axis=0)
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


class Values(NamedTuple):
    """How a method values the models for a prompt.

    Attributes:
        scores: Scores that the models are compared by, larger is better, shape (M,); NaN if unknown.
        estimates: Estimated probability that each is right, shape (M,); the decision's confidence, clipped to [0, 1].
        unit: Words for people that say what the scores are.
    """

    scores: Floats
    estimates: Floats
    unit: str


def scored_of(data: FitData) -> Scored:
    """Reduce the table to the library's experts and usable prompts; raises `NotFittable` if there is no table."""
    table = data.scores
    if table is None:
        raise NotFittable("there is no table of scores")
    columns = {model: column for column, model in enumerate(table.models)}
    scores = np.asarray(table.scores, np.float64)
    experts = sorted(expert.expert_id for expert in data.experts if expert.expert_id in columns)
    experts = [expert for expert in experts if np.isfinite(scores[:, columns[expert]]).any()]
    base = scores[:, columns[BASE]] if BASE in columns else np.full(len(scores), np.nan)
    aligned = np.column_stack([base, *(scores[:, columns[expert]] for expert in experts)])
    aligned[~np.isfinite(aligned)] = np.nan
    embeddings = np.asarray(table.embeddings, np.float32)
    rows = np.flatnonzero(np.isfinite(aligned).any(axis=1) & np.isfinite(embeddings).all(axis=1))
    samples = [table.samples[row] for row in rows.tolist()]
    return Scored(
        tuple(experts),
        embeddings[rows],
        aligned[rows],
        tuple(sample.task for sample in samples),
        tuple(sample.prompt for sample in samples),
    )


def tags_of(scored: Scored, num_clusters: int = NUM_CLUSTERS) -> NDArray[np.int64]:
    """Number the task of each prompt, shape (n,); prompts without a task are clustered by k-means."""
    names = {task: number for number, task in enumerate(sorted(set(scored.tasks)))}
    tags = np.array([names[task] for task in scored.tasks], np.int64)
    without = np.array([row for row, task in enumerate(scored.tasks) if not task], np.int64)
    rows = scored.embeddings[without]
    wanted = min(num_clusters, len(np.unique(rows, axis=0)))
    if wanted > 1:
        tags[without] = len(names) + KMeans(wanted, n_init=4, random_state=0).fit(rows).labels_
    return tags


class TableRouter(ABC):
    """A router that values the base and every expert by what it learned from the table.

    Args:
        config: The router's options.
        experts: Ids of the experts that are in the table, sorted.
        means: Mean score of every model over the table, shape (M,).
        learned: The result of `learn`.
    """

    card: ClassVar[MethodCard]
    config_class: ClassVar[type[TableConfig]]

    def __init__(self, config: Any, experts: tuple[str, ...], means: Floats, learned: Learned) -> None:
        if means.shape != (1 + len(experts),):
            raise ValueError(f"means of shape {means.shape} for {len(experts)} experts")
        self.config = config
        self.experts = experts
        self.means = means
        if experts:
            self.prepare(learned)

    # -- what a method defines ------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def learn(cls, config: Any, scored: Scored, progress: Progress) -> Learned:
        """Learn from a table with at least one expert."""

    @abstractmethod
    def prepare(self, learned: Learned) -> None:
        """Prepare for routing; raises KeyError, TypeError or ValueError if `learned` is not a result of `learn`."""

    @abstractmethod
    def values(self, query: RouteQuery, allowed: Mask) -> Values:
        """Value the models for a prompt with an embedding; `allowed` (M,) marks those that may be chosen."""

    # -- the router protocol --------------------------------------------------------------------------------------

    @classmethod
    def fit(cls, config: Any, data: FitData, progress: Progress) -> Artefact:
        """Learn from the table; raises `NotFittable` if there is none."""
        scored = scored_of(data)
        learned = cls.learn(config, scored, progress) if scored.experts and len(scored.texts) else Learned()
        return Artefact(
            router=cls.card.name,
            arrays={**learned.arrays, "means": scored.means() if learned.arrays else np.full(1, np.nan)},
            data={"experts": list(scored.experts) if learned.arrays else [], "learned": dict(learned.data)},
            library_version=data.version,
            embedder=data.embedder,
        )

    @classmethod
    def load(cls, config: Any, artefact: Artefact) -> Self:
        """Build the router from an artefact of `fit`; raises `BadArtefact`."""
        with reading(artefact, cls.card.name):
            learned = Learned(artefact.arrays, dict(artefact.data["learned"]))
            experts = tuple(str(expert) for expert in artefact.data["experts"])
            return cls(config, experts, np.asarray(artefact.arrays["means"], np.float64), learned)

    def route(self, query: RouteQuery) -> Decision:
        """Choose the best expert if it beats the base and reaches the query's own threshold."""
        if query.embedding is None or not np.isfinite(query.embedding).all():
            return Decision((), 0.0, reason="The prompt has no text that can be compared.")
        allowed = np.array([np.isfinite(self.means[0]), *(query.allows(expert) for expert in self.experts)], dtype=bool)
        if not allowed[1:].any():
            return Decision((), 0.0, reason="No allowed expert has a score in the table.")
        values = self.values(query, allowed)
        scores = np.where(allowed, values.scores, np.nan)
        models = 1 + np.flatnonzero(np.isfinite(scores[1:]))
        if not len(models):
            return Decision((), 0.0, reason="No allowed expert can be compared with the prompt.")
        order = models[np.lexsort((models, -self.means[models], -scores[models]))]
        best, base = int(order[0]), float(scores[0])
        better = not base >= scores[best]  # true also if the base has no score (NaN)
        enough = query.threshold is None or scores[best] >= query.threshold
        against = "the base has none" if np.isnan(base) else f"{base:.3f} for the base"
        least = "" if query.threshold is None else f", and the request asks for at least {query.threshold:.3f}"
        return Decision(
            experts=(WeightedExpert(self.experts[best - 1]),) if better and enough else (),
            confidence=float(np.clip(np.nan_to_num(values.estimates[best]), 0.0, 1.0)),
            candidates=tuple(
                ScoredExpert(self.experts[model - 1], float(scores[model]))
                for model in order[: self.config.max_candidates].tolist()
            ),
            reason=f"{values.unit} {scores[best]:.3f} for {self.experts[best - 1]}; {against}{least}.",
        )
