"""What routers share that give every expert a score for a prompt: learning, calibration, choosing, explaining.

A method says how it learns and how it scores, and has all the rest from here::

    class CentroidRouter(ScoringRouter):
        card = MethodCard(...)
        config_class = CentroidConfig

        @classmethod
        def learn(cls, config, examples) -> Learned: ...

        def scores(self, prompts) -> Scores: ...

Shapes: n examples of all experts together, d dimensions, E experts, p prompts.

Threshold and confidence come from the examples themselves (`routers.calibration`): the method learns five times from
four fifths of each expert's examples and scores the rest, without their template (`routers.templates`). *Known* is the
best score of a left-out example, *unknown* the best among the other experts. Scores must grow with evidence; their
scale is the method's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from routers.artefacts import check_router
from routers.base import (
    Artefact,
    Decision,
    FitData,
    GateChoice,
    Matrix,
    MethodCard,
    Progress,
    RouteQuery,
    RouterConfig,
    ScoredExpert,
    WeightedExpert,
)
from routers.calibration import Calibration, calibrate
from routers.errors import BadArtefact, NotFittable
from routers.templates import bare_texts

Scores = NDArray[np.float64]
"""Shape (p, E); NaN for an expert that the method can say nothing about."""

NUM_FOLDS = 5
MAX_CHOSEN = 64
"""Experts that a decision can use; a recipe holds no more."""


class ScoringConfig(RouterConfig):
    """Options of every scoring router."""

    threshold: float | None = Field(
        None, description="Abstain below this score; unset: calibrated from the library's own examples."
    )
    in_library_share: float = Field(
        0.8, gt=0, lt=1, description="Assumed part of the prompts that have an expert; lower it to abstain more often."
    )
    max_candidates: int = Field(10, ge=1, description="How many scored experts a decision lists.")
    max_calibration: int = Field(2048, ge=0, description="How many examples are scored to calibrate.")


@dataclass(frozen=True, slots=True)
class Examples:
    """The library's examples, side by side.

    Attributes:
        experts: All experts' ids, sorted, also of those without an example.
        texts: The examples, duplicates within an expert left out.
        embeddings: Shape (n, d), float32, unit rows.
        owner: Shape (n,): the expert of each example, as an index into `experts`.
        bare_texts, bare_embeddings: The examples without their template (`routers.templates`), which calibrate.
    """

    experts: tuple[str, ...]
    texts: tuple[str, ...]
    embeddings: Matrix
    owner: NDArray[np.int32]
    bare_texts: tuple[str, ...]
    bare_embeddings: Matrix

    def take(self, rows: NDArray[np.int64]) -> Examples:
        """Some of the examples, of the same experts."""
        chosen = rows.tolist()
        return replace(
            self,
            texts=tuple(self.texts[row] for row in chosen),
            embeddings=self.embeddings[rows],
            owner=self.owner[rows],
            bare_texts=tuple(self.bare_texts[row] for row in chosen),
            bare_embeddings=self.bare_embeddings[rows],
        )

    def mean_of_experts(self) -> NDArray[np.float32]:
        """The mean of each expert's rows, shape (E, d); NaN for an expert without one."""
        sums = np.zeros((len(self.experts), self.embeddings.shape[1]), np.float64)
        np.add.at(sums, self.owner, self.embeddings)
        counts = np.bincount(self.owner, minlength=len(self.experts))
        with np.errstate(invalid="ignore"):
            return np.asarray(sums / counts[:, None], np.float32)


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts to score: texts, and embeddings of shape (p, d)."""

    texts: Sequence[str]
    embeddings: Matrix


@dataclass(frozen=True, slots=True)
class Learned:
    """What a method learns: arrays and plain JSON data, as an artefact stores them."""

    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)


class ScoringRouter(ABC):
    """A router that scores every expert; see the module's docstring.

    Args:
        config: Its options.
        experts: All experts' ids, sorted.
        learned: What `learn` gave.
        calibration: Threshold and confidence.
    """

    card: ClassVar[MethodCard]
    config_class: ClassVar[type[ScoringConfig]]

    def __init__(self, config: Any, experts: Sequence[str], learned: Learned, calibration: Calibration) -> None:
        self.config = config
        self.experts = tuple(experts)
        self._number = {expert: number for number, expert in enumerate(self.experts)}
        self._calibration = calibration
        self.threshold = calibration.threshold if config.threshold is None else config.threshold
        if self.experts:
            self.prepare(learned)

    # -- a method's own -------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def learn(cls, config: Any, examples: Examples) -> Learned:
        """Learn from examples; also called on parts of them."""

    @abstractmethod
    def prepare(self, learned: Learned) -> None:
        """Make ready to score; KeyError, TypeError and ValueError say that something is not as `learn` gave it."""

    @abstractmethod
    def scores(self, prompts: Prompts) -> Scores:
        """Score every expert for every prompt; thread-safe."""

    def choose(self, ranked: Sequence[ScoredExpert]) -> tuple[tuple[WeightedExpert, ...], GateChoice | None]:
        """From the experts that may be used, best first, to what is executed; the best one unless said otherwise."""
        return (WeightedExpert(ranked[0].expert_id),), None

    # -- the router protocol --------------------------------------------------------------------------------------

    @classmethod
    def fit(cls, config: Any, data: FitData, progress: Progress) -> Artefact:
        """Learn and calibrate."""
        examples = examples_of(data)
        learned = cls.learn(config, examples)
        calibration = cls._calibrated(config, examples, progress)
        return Artefact(
            router=cls.card.name,
            arrays=dict(learned.arrays),
            data={
                "experts": list(examples.experts) if examples.texts else [],  # nothing was learnt: nobody to choose
                "learned": dict(learned.data),
                "calibration": [calibration.threshold, calibration.slope, calibration.margin_slope],
            },
            library_version=data.version,
            embedder=data.embedder,
        )

    @classmethod
    def load(cls, config: Any, artefact: Artefact) -> Self:
        """Build from an artefact of `fit`; raises `BadArtefact` if it is none."""
        check_router(artefact, cls.card.name)
        try:
            data = artefact.data
            calibration = Calibration(*(float(number) for number in data["calibration"]))
            learned = Learned(artefact.arrays, dict(data["learned"]))
            return cls(config, [str(expert) for expert in data["experts"]], learned, calibration)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise BadArtefact(f"a {cls.card.name} artefact lacks or garbles {error}") from error

    def route(self, query: RouteQuery) -> Decision:
        """Decide; see the module's docstring."""
        embedding = query.embedding
        if self.card.needs_embedding and (embedding is None or not np.isfinite(embedding).all()):
            return Decision((), 0.0, reason="The prompt has no text that could be compared.")
        rows = np.zeros((1, 0), np.float32) if embedding is None else np.asarray(embedding, np.float32)[None]
        scores = self.scores(Prompts((query.text,), rows))[0] if self.experts else np.empty(0)
        allowed = np.flatnonzero(np.isfinite(scores))
        if query.candidates is not None:
            mine = [self._number[expert] for expert in query.candidates if expert in self._number]
            allowed = np.intersect1d(allowed, mine)
        if not len(allowed):
            return Decision((), 0.0, reason="No expert that may be used can be compared with the prompt.")
        order = allowed[np.argsort(-scores[allowed], kind="stable")]  # experts are sorted: ties go by name
        order = order[: max(self.config.max_candidates, MAX_CHOSEN)]
        ranked = [ScoredExpert(self.experts[number], float(scores[number])) for number in order.tolist()]
        best = ranked[0].score
        margin = best - ranked[1].score if len(ranked) > 1 else None
        chosen, gate = self.choose(ranked) if best >= self.threshold else ((), None)
        relation = "reaches" if chosen else "is below"
        return Decision(
            experts=chosen,
            confidence=self._calibration.confidence(best, margin),
            candidates=tuple(ranked[: self.config.max_candidates]),
            reason=f"Best score {best:.3f} ({ranked[0].expert_id}) {relation} the threshold {self.threshold:.3f}.",
            gate=gate,
        )

    # -- calibration ----------------------------------------------------------------------------------------------

    @classmethod
    def _calibrated(cls, config: Any, examples: Examples, progress: Progress) -> Calibration:
        """Score each fold's examples by what was learnt from the others."""
        known: list[float] = []
        margins: list[float] = []
        right: list[bool] = []
        unknown: list[float] = []
        fold_of = _folds(examples.owner)
        none = Calibration(0.0, 1.0, 1.0)
        sample = np.linspace(0, len(examples.texts) - 1, min(len(examples.texts), config.max_calibration))
        chosen = np.unique(sample.astype(np.int64))
        for fold in range(NUM_FOLDS):
            progress(fold, NUM_FOLDS)
            held_out = chosen[fold_of[chosen] == fold]
            rest = examples.take(np.flatnonzero(fold_of != fold))
            if not len(held_out) or not rest.texts:
                continue
            router = cls(config.model_copy(update={"threshold": 0.0}), examples.experts, cls.learn(config, rest), none)
            asked = examples.take(held_out)
            found = router.scores(Prompts(asked.bare_texts, asked.bare_embeddings))
            scores = np.where(np.isnan(found), -np.inf, found)
            for row, own in zip(scores, asked.owner.tolist(), strict=True):
                others = np.delete(row, own)
                stranger = float(others.max(initial=-np.inf))
                if np.isfinite(stranger):
                    unknown.append(stranger)
                if np.isfinite(row[own]):
                    best = max(float(row[own]), stranger)
                    second = min(float(row[own]), stranger) if row[own] >= stranger else _second(row)
                    known.append(best)
                    right.append(row[own] > stranger)
                    margins.append(best - second if np.isfinite(second) else 1.0)
        progress(NUM_FOLDS, NUM_FOLDS)
        return calibrate(
            np.array(known), np.array(right, dtype=bool), np.array(margins), np.array(unknown), config.in_library_share
        )


def examples_of(data: FitData) -> Examples:
    """A library's examples side by side; raises `NotFittable` if some are not embedded."""
    experts = sorted(data.experts, key=lambda expert: expert.expert_id)
    texts: list[str] = []
    owner: list[int] = []
    rows: list[Matrix] = []
    bare: list[str] = []
    bare_rows: list[Matrix] = []
    for number, expert in enumerate(experts):
        if not expert.examples:
            continue
        embedded = data.embeddings.get(expert.expert_id)
        if embedded is None or len(embedded) != len(expert.examples):
            raise NotFittable(f"the examples of {expert.expert_id} are not embedded")
        first = {text: row for row, text in reversed(list(enumerate(expert.examples)))}
        kept = sorted(first.values())
        texts += [expert.examples[row] for row in kept]
        owner += [number] * len(kept)
        rows.append(np.asarray(embedded, np.float32)[kept])
        without = bare_texts(expert.examples)
        bare += [without[row] for row in kept]
        bare_rows.append(np.asarray(data.bare.get(expert.expert_id, embedded), np.float32)[kept])
    dim = next((block.shape[1] for block in rows), 1)
    nothing = np.zeros((0, dim), np.float32)
    return Examples(
        tuple(expert.expert_id for expert in experts),
        tuple(texts),
        np.concatenate(rows) if rows else nothing,
        np.array(owner, np.int32),
        tuple(bare),
        np.concatenate(bare_rows) if bare_rows else nothing,
    )


def evenly(examples: Examples, most: int) -> NDArray[np.int64]:
    """Rows of at most so many examples of each expert, evenly spaced."""
    rows = []
    for expert in np.unique(examples.owner):
        own = np.flatnonzero(examples.owner == expert)
        rows.append(own[np.linspace(0, len(own) - 1, min(most, len(own))).astype(np.int64)])
    return np.concatenate(rows) if rows else np.empty(0, np.int64)


def softmax_weights(ranked: Sequence[ScoredExpert], temperature: float) -> tuple[WeightedExpert, ...]:
    """Weights of a mix from scores: softmax(score / temperature)."""
    scores = np.array([scored.score for scored in ranked]) / temperature
    weights = np.exp(scores - scores.max())
    weights /= weights.sum()
    return tuple(WeightedExpert(s.expert_id, float(w)) for s, w in zip(ranked, weights, strict=True))


def _folds(owner: NDArray[np.int32]) -> NDArray[np.int64]:
    """The fold of each example: an expert's examples are dealt out in turn."""
    place = np.zeros(len(owner), np.int64)
    seen: dict[int, int] = {}
    for row, expert in enumerate(owner.tolist()):
        place[row] = seen.get(expert, 0)
        seen[expert] = seen.get(expert, 0) + 1
    return place % NUM_FOLDS


def _second(row: NDArray[np.float64]) -> float:
    return float(np.partition(row, -2)[-2]) if len(row) > 1 else float("-inf")
