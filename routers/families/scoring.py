"""Base of routers that give every expert a score for a prompt: learning, calibrating, choosing, explaining.

A method says how it learns and how it scores, and inherits the rest::

    class CentroidRouter(ScoringRouter):
        card = replace(EMBEDDING_CARD, ...)
        config_class = CentroidConfig

        @classmethod
        def learn(cls, config, examples) -> Learned: ...

        def prepare(self, learned) -> None: ...

        def scores(self, prompts) -> Scores: ...

Shapes: n examples of all experts together, d dimensions, E experts, p prompts.

The expert with the best score wins. The router abstains unless the winner's *evidence* reaches the threshold. Evidence
is the score, or the method's own `judge`, combined with closeness to the expert's examples
(`routers.families.closeness`) where the method asks for it, and adjusted for typicality
(`routers.families.typicality`). Threshold and confidence come from cross-validation on the library's examples
(`routers.families.cross_validation`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from routers.artefacts import reading
from routers.base import (
    MAX_EXPERTS,
    Artefact,
    Decision,
    FitData,
    Floats,
    GateChoice,
    Matrix,
    MethodCard,
    Progress,
    RouteQuery,
    ScoredExpert,
    Vector,
    WeightedExpert,
)
from routers.families.calibration import Calibration
from routers.families.closeness import closeness, directions_of
from routers.families.cross_validation import FoldScores, calibrate_on_folds, cross_validate
from routers.families.held_out import calibration_for
from routers.families.options import CalibrationOptions
from routers.families.typicality import expected_of, typicality_adjusted
from routers.library.examples import Examples, examples_of

Scores = Floats
"""Shape (p, E); NaN for an expert that the method can say nothing about."""

Closeness = Literal["unused", "half", "whole"]
"""Share of the evidence that is closeness to an expert's examples."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts to score.

    Attributes:
        texts: The prompts, p of them.
        embeddings: Embeddings of the prompts, shape (p, d).
        parts: Embeddings of each prompt's `routers.text.segments.parts_of`, shape (p, 4, d); None if not known.
    """

    texts: Sequence[str]
    embeddings: Matrix
    parts: Matrix | None = None


class Judgement(NamedTuple):
    """Scores, which rank the experts, and evidence that an expert fits, both of shape (p, E)."""

    scores: Scores
    evidence: Scores


@dataclass(frozen=True, slots=True)
class Learned:
    """The result of `learn`: arrays and plain JSON data, as an artefact stores them."""

    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)


class ScoringRouter(ABC):
    """A router that scores every expert and chooses the best one, or abstains.

    Args:
        config: The router's options.
        experts: Ids of all experts, sorted.
        learned: The result of `learn`.
        calibration: Threshold and confidence.
    """

    card: ClassVar[MethodCard]
    config_class: ClassVar[type[CalibrationOptions]]
    adjusts_for_typicality: ClassVar[bool] = True
    """Whether evidence is adjusted by the expert's expected score (`routers.families.typicality`)."""
    closeness: ClassVar[Closeness] = "unused"
    """How much closeness to an expert's examples counts: half for methods that know only a mean or a border of them,
    the whole evidence where scores are not similarities."""

    def __init__(self, config: Any, experts: Sequence[str], learned: Learned, calibration: Calibration) -> None:
        self.config = config
        self.experts = tuple(experts)
        self._number = {expert: number for number, expert in enumerate(self.experts)}
        self.calibration = calibration
        self.threshold = calibration.threshold if config.threshold is None else config.threshold
        self._expected = expected_of(calibration.expected_scores, self.experts)
        if self.experts:
            self.prepare(learned)
            if self.closeness != "unused":
                self._directions = np.asarray(learned.arrays["directions"], np.float16)
                if self._directions.shape[:1] != (len(self.experts),):
                    raise ValueError(f"directions of shape {self._directions.shape} for {len(self.experts)} experts")

    # -- what a method defines ------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def learn(cls, config: Any, examples: Examples) -> Learned:
        """Learn from examples; calibration calls this with parts of the library."""

    @abstractmethod
    def prepare(self, learned: Learned) -> None:
        """Prepare for scoring; raises KeyError, TypeError or ValueError if `learned` is not a result of `learn`."""

    @abstractmethod
    def scores(self, prompts: Prompts) -> Scores:
        """Score every expert for every prompt; thread-safe."""

    def judge(self, prompts: Prompts) -> Judgement:
        """Return scores and evidence; by default both are the scores."""
        scores = self.scores(prompts)
        return Judgement(scores, scores)

    def embedded(self) -> Mapping[str, Vector]:
        """Return the texts that this method had embedded for itself, to save the next fit the work; by default none."""
        return {}

    def choose(self, ranked: Sequence[ScoredExpert]) -> tuple[tuple[WeightedExpert, ...], GateChoice | None]:
        """Choose what is executed from the allowed experts, best first; by default the best one."""
        return (WeightedExpert(ranked[0].expert_id),), None

    # -- the router protocol --------------------------------------------------------------------------------------

    @classmethod
    def fit(cls, config: Any, data: FitData, progress: Progress) -> Artefact:
        """Learn from the library's examples, and calibrate unless the calibration in service still holds."""
        examples = examples_of(data)
        known: Mapping[str, Vector] = data.previous.embedded() if isinstance(data.previous, cls) else {}
        examples = replace(examples, embed=_remembering(examples.embed, known))
        learned = cls._learn_all(config, examples)
        calibration = calibration_for(data, cls, config, lambda: cls._calibrated(config, examples, progress))
        return Artefact(
            router=cls.card.name,
            arrays=dict(learned.arrays),
            data={
                "experts": list(examples.experts) if examples.texts else [],  # without examples nobody can be chosen
                "learned": dict(learned.data),
                **calibration.dump(),
            },
            library_version=data.version,
            embedder=data.embedder,
        )

    @classmethod
    def load(cls, config: Any, artefact: Artefact) -> Self:
        """Build the router from an artefact of `fit`; raises `BadArtefact`."""
        with reading(artefact, cls.card.name):
            data = artefact.data
            calibration = Calibration.load(data)
            learned = Learned(artefact.arrays, dict(data["learned"]))
            return cls(config, [str(expert) for expert in data["experts"]], learned, calibration)

    def route(self, query: RouteQuery) -> Decision:
        """Choose the expert with the best score if its evidence reaches the threshold."""
        prompts = asked(query, self.card)
        if not prompts.texts:
            return Decision((), 0.0, reason="The prompt has no text that can be compared.")
        if not self.experts:
            return Decision((), 0.0, reason="The library is empty.")
        judged = self.judge(prompts)
        scores = judged.scores.mean(axis=0)
        allowed = np.flatnonzero(np.isfinite(scores))
        if query.candidates is not None:
            mine = [self._number[expert] for expert in query.candidates if expert in self._number]
            allowed = np.intersect1d(allowed, mine)
        if not len(allowed):
            return Decision((), 0.0, reason="No allowed expert can be compared with the prompt.")
        order = _best_first(scores, allowed, max(self.config.max_candidates, MAX_EXPERTS))
        ranked = [ScoredExpert(self.experts[number], float(scores[number])) for number in order.tolist()]
        best = float(self._evidence(prompts, judged, order[:1].repeat(len(prompts.texts))).mean())
        if self.adjusts_for_typicality:
            best = float(typicality_adjusted(best, self._expected[order[0]]))
        margin = None
        if judged.evidence is judged.scores and len(ranked) > 1:
            margin = ranked[0].score - ranked[1].score
        threshold = self.threshold if query.threshold is None else query.threshold
        chosen, gate = self.choose(ranked) if best >= threshold else ((), None)
        relation = "reaches" if chosen else "is below"
        return Decision(
            experts=chosen,
            confidence=self.calibration.confidence(best, margin),
            candidates=tuple(ranked[: self.config.max_candidates]),
            reason=f"Evidence {best:.3f} for {ranked[0].expert_id} {relation} the threshold {threshold:.3f}.",
            gate=gate,
        )

    @classmethod
    def _learn_all(cls, config: Any, examples: Examples) -> Learned:
        """Learn what the method needs, and the directions of the examples if it uses closeness."""
        learned = cls.learn(config, examples)
        if cls.closeness == "unused":
            return learned
        return replace(learned, arrays={**learned.arrays, "directions": directions_of(examples)})

    def _evidence(self, prompts: Prompts, judged: Judgement, experts: NDArray[Any]) -> Floats:
        """Return the evidence for one expert per prompt, shape (p,), not adjusted for typicality; NaN for none."""
        found = np.asarray(judged.evidence[np.arange(len(experts)), experts], np.float64)
        if self.closeness == "unused":
            return found
        close = closeness(self._directions[experts], prompts.embeddings)
        return np.where(np.isnan(found), np.nan, close if self.closeness == "whole" else (found + close) / 2)

    # -- calibration ----------------------------------------------------------------------------------------------

    @classmethod
    def _calibrated(cls, config: Any, examples: Examples, progress: Progress) -> Calibration:
        """Calibrate by cross-validation on the library's examples."""
        without_threshold = config.model_copy(update={"threshold": 0.0})

        def learn(rest: Examples) -> Callable[[Examples], FoldScores]:
            learned = cls._learn_all(config, rest)
            return cls(without_threshold, examples.experts, learned, Calibration(0.0, 1.0, 1.0))._score_held_out

        blocks = list(cross_validate(examples, config.max_calibration, learn, progress))
        return calibrate_on_folds(blocks, examples.experts, config, adjusts_for_typicality=cls.adjusts_for_typicality)

    def _score_held_out(self, examples: Examples) -> FoldScores:
        """Score examples that this router has not learned from, without their template."""
        prompts, owner = Prompts(examples.bare_texts, examples.bare_embeddings), examples.owner
        judged = self.judge(prompts)
        rows = np.arange(len(owner))
        scores = np.where(np.isnan(judged.scores), -np.inf, judged.scores)
        own = scores[rows, owner].copy()
        scores[rows, owner] = -np.inf
        other = scores.argmax(axis=1)
        second = np.partition(scores, -2, axis=1)[:, -2] if scores.shape[1] > 1 else np.full(len(rows), -np.inf)
        return FoldScores(
            owner=owner,
            other=other,
            own_score=own,
            other_score=scores[rows, other],
            second_score=second,
            own_evidence=self._evidence(prompts, judged, owner),
            other_evidence=self._evidence(prompts, judged, other),
            has_margin=judged.evidence is judged.scores,
        )


def asked(query: RouteQuery, card: MethodCard) -> Prompts:
    """Return the prompts that a decision is about: the request's, or the task's last ones if the method reads them.

    Prompts without an embedding are left out for methods that need one, so the result may be empty.
    """
    window = query.window if card.reads_task else None
    if window is not None and window.texts:
        texts, rows = window.texts, np.asarray(window.embeddings, np.float32)
    else:
        row = np.zeros(0) if query.embedding is None else query.embedding
        texts, rows = (query.text,), np.asarray(row, np.float32)[None]
        if card.reads_parts and query.parts is not None and np.isfinite(query.parts).all():
            return Prompts(texts, rows, np.asarray(query.parts, np.float32)[None])
    if not card.needs_embedding:
        return Prompts(texts, rows)
    usable = np.isfinite(rows).all(axis=1) & (rows.shape[1] > 0)
    return Prompts([text for text, kept in zip(texts, usable.tolist(), strict=True) if kept], rows[usable])


def _remembering(
    embed: Callable[[Sequence[str]], Matrix], known: Mapping[str, Vector]
) -> Callable[[Sequence[str]], Matrix]:
    """Return an embedder for one fit that embeds each text at most once, and none that is in `known`."""
    rows = dict(known)

    def work(texts: Sequence[str]) -> Matrix:
        new = [text for text in dict.fromkeys(texts) if text not in rows]
        found = embed(new) if new or not texts else ()
        rows.update(zip(new, found, strict=True))
        return np.stack([rows[text] for text in texts]) if texts else np.asarray(found, np.float32)

    return work


def _best_first(scores: Floats, allowed: NDArray[np.int64], max_experts: int) -> NDArray[np.int64]:
    """Return up to `max_experts` of the allowed experts, best first; ties go by number, hence by name."""
    if len(allowed) > max_experts:
        # Sort only those that can be among the best: a large library has thousands.
        lowest = -np.partition(-scores[allowed], max_experts - 1)[max_experts - 1]
        allowed = allowed[scores[allowed] >= lowest]
    return allowed[np.argsort(-scores[allowed], kind="stable")][:max_experts]
