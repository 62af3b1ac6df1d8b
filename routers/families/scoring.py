"""What routers share that give every expert a score for a prompt: learning, calibration, choosing, explaining.

A method says how it learns and how it scores, and has all the rest from here::

    class CentroidRouter(ScoringRouter):
        card = MethodCard(...)
        config_class = CentroidConfig

        @classmethod
        def learn(cls, config, examples) -> Learned: ...

        def scores(self, prompts) -> Scores: ...

Shapes: n examples of all experts together, d dimensions, E experts, p prompts.

The best score wins. Whether the winner fits is asked of its *evidence*, which must reach the threshold:

    evidence(e) = score(e) + ½ (score(e) - usual(e))

usual(e) being what e scores for its own examples when they are left out, on average, drawn towards the mean of all
experts by three examples' worth of it. Examples that are all alike score high, those that are about anything score low,
and strangers resemble the former. Methods that know of an expert's examples only a mean or a border take evidence from
their directions too (`closeness`, `routers.families.closeness`): half of it, or all where scores are no similarities.
Where a method has an evidence of its own, that takes the score's place.

Threshold and confidence come from the examples themselves (`routers.families.calibration`): the method learns five
times from four fifths of each expert's examples and scores the rest, without their template (`routers.text.templates`).
*Known* is the winner's evidence for a left-out example, *unknown* that of the winner among the other experts. Scores
must grow with evidence; their scale is the method's own. A method whose card says ``reads_task`` decides by the mean
score of the task's last prompts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from routers.artefacts import check_router
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
    RouterConfig,
    ScoredExpert,
    Vector,
    WeightedExpert,
)
from routers.errors import BadArtefact
from routers.families.calibration import CROWD_WEIGHT, IN_LIBRARY_SHARE, Calibration, calibrate, marks_of, still_holding
from routers.families.closeness import closeness, directions_of
from routers.library.examples import Examples, examples_of
from routers.maths.even_sample import evenly_spaced

Scores = NDArray[np.float64]
"""Shape (p, E); NaN for an expert that the method can say nothing about."""

Closeness = Literal["unused", "half", "whole"]
"""How much of the evidence is closeness to the directions of an expert's examples."""

NUM_FOLDS = 5
BLOCK = 128
"""Examples that are scored at once, so that a large library does not need the memory of all."""

USUAL_PRIOR = 3.0

FUSION = GateChoice("uniform", aggregation="ab")
"""Experts with their A and their B averaged each by itself, in equal parts."""

WEIGHTED_FUSION = GateChoice("fixed", aggregation="ab")
"""The same with the decision's own weights."""


class ScoringConfig(RouterConfig):
    """Options of every scoring router."""

    threshold: float | None = Field(
        None,
        description="Abstain below this evidence (the score, weighed by what is usual for the expert); "
        "unset: calibrated from the library's own examples.",
    )
    in_library_share: float = Field(
        IN_LIBRARY_SHARE,
        gt=0,
        lt=1,
        description="Assumed part of the prompts that have an expert; lower it to abstain more often.",
    )
    max_candidates: int = Field(10, ge=1, description="How many scored experts a decision lists.")
    max_calibration: int = Field(2048, ge=0, description="How many examples are scored to calibrate.")


def _once(embed: Callable[[Sequence[str]], Matrix], known: Mapping[str, Vector]) -> Callable[[Sequence[str]], Matrix]:
    """An embedder for one fit, which asks for no text twice, and for none that is known."""
    rows = dict(known)

    def work(texts: Sequence[str]) -> Matrix:
        new = [text for text in dict.fromkeys(texts) if text not in rows]
        found = embed(new) if new or not texts else ()
        rows.update(zip(new, found, strict=True))
        return np.stack([rows[text] for text in texts]) if texts else np.asarray(found, np.float32)

    return work


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts to score.

    Attributes:
        texts: Shape (p,).
        embeddings: Shape (p, d).
        parts: Of each prompt's `routers.text.segments.parts_of`, shape (p, 4, d); None if they are not known.
    """

    texts: Sequence[str]
    embeddings: Matrix
    parts: Matrix | None = None


class Judgement(NamedTuple):
    """What a method makes of prompts: scores that rank, and evidence that any expert fits, both of shape (p, E)."""

    scores: Scores
    evidence: Scores


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
    weighs_usual: ClassVar[bool] = True
    """Whether evidence is weighed by what is usual for an expert; see the module's docstring."""
    closeness: ClassVar[Closeness] = "unused"

    def __init__(self, config: Any, experts: Sequence[str], learned: Learned, calibration: Calibration) -> None:
        self.config = config
        self.experts = tuple(experts)
        self._number = {expert: number for number, expert in enumerate(self.experts)}
        self.calibration = calibration
        self.threshold = calibration.threshold if config.threshold is None else config.threshold
        self._usual = _usual_of(calibration.usual, self.experts)
        if self.experts:
            self.prepare(learned)
            if self.closeness != "unused":
                self._directions = np.asarray(learned.arrays["directions"], np.float16)
                if self._directions.shape[:1] != (len(self.experts),):
                    raise ValueError(f"directions of shape {self._directions.shape} for {len(self.experts)} experts")

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

    def judge(self, prompts: Prompts) -> Judgement:
        """Scores and evidence; the same unless a method says otherwise."""
        scores = self.scores(prompts)
        return Judgement(scores, scores)

    def embedded(self) -> Mapping[str, Vector]:
        """What texts of its own this method had embedded, for the next fit; none unless a method says otherwise."""
        return {}

    def choose(self, ranked: Sequence[ScoredExpert]) -> tuple[tuple[WeightedExpert, ...], GateChoice | None]:
        """From the experts that may be used, best first, to what is executed; the best one unless said otherwise."""
        return (WeightedExpert(ranked[0].expert_id),), None

    # -- the router protocol --------------------------------------------------------------------------------------

    @classmethod
    def fit(cls, config: Any, data: FitData, progress: Progress) -> Artefact:
        """Learn and calibrate; the latter only if much has changed since `FitData.previous` was calibrated."""
        examples = examples_of(data)
        known: Mapping[str, Vector] = data.previous.embedded() if isinstance(data.previous, cls) else {}
        examples = replace(examples, embed=_once(examples.embed, known))
        learned = cls._learnt(config, examples)
        marks = marks_of(data.experts)
        calibration = still_holding(data.previous, cls, config, marks)
        if calibration is None:
            calibration = cls._calibrated(config, examples, progress).to(marks)
        return Artefact(
            router=cls.card.name,
            arrays=dict(learned.arrays),
            data={
                "experts": list(examples.experts) if examples.texts else [],  # nothing was learnt: nobody to choose
                "learned": dict(learned.data),
                **calibration.dump(),
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
            calibration = Calibration.load(data)
            learned = Learned(artefact.arrays, dict(data["learned"]))
            return cls(config, [str(expert) for expert in data["experts"]], learned, calibration)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise BadArtefact(f"a {cls.card.name} artefact lacks or garbles {error}") from error

    def route(self, query: RouteQuery) -> Decision:
        """Decide; see the module's docstring."""
        prompts = asked(query, self.card)
        if not prompts.texts:
            return Decision((), 0.0, reason="The prompt has no text that could be compared.")
        if not self.experts:
            return Decision((), 0.0, reason="The library is empty.")
        judged = self.judge(prompts)
        scores = judged.scores.mean(axis=0)
        allowed = np.flatnonzero(np.isfinite(scores))
        if query.candidates is not None:
            mine = [self._number[expert] for expert in query.candidates if expert in self._number]
            allowed = np.intersect1d(allowed, mine)
        if not len(allowed):
            return Decision((), 0.0, reason="No expert that may be used can be compared with the prompt.")
        order = _best_first(scores, allowed, max(self.config.max_candidates, MAX_EXPERTS))
        ranked = [ScoredExpert(self.experts[number], float(scores[number])) for number in order.tolist()]
        best = float(self._evidence(prompts, judged, order[:1].repeat(len(prompts.texts))).mean())
        if self.weighs_usual:
            best = float(weighed(best, self._usual[order[0]]))
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
    def _learnt(cls, config: Any, examples: Examples) -> Learned:
        """What the method learns, and the directions if it looks at them."""
        learned = cls.learn(config, examples)
        if cls.closeness == "unused":
            return learned
        return replace(learned, arrays={**learned.arrays, "directions": directions_of(examples)})

    def _evidence(self, prompts: Prompts, judged: Judgement, experts: NDArray[Any]) -> Floats:
        """Evidence that an expert fits, one for each prompt, shape (p,), before it is weighed; NaN for none."""
        found = np.asarray(judged.evidence[np.arange(len(experts)), experts], np.float64)
        if self.closeness == "unused":
            return found
        close = closeness(self._directions[experts], prompts.embeddings)
        return np.where(np.isnan(found), np.nan, close if self.closeness == "whole" else (found + close) / 2)

    # -- calibration ----------------------------------------------------------------------------------------------

    @classmethod
    def _calibrated(cls, config: Any, examples: Examples, progress: Progress) -> Calibration:
        """Score each fold's examples by what was learnt from the others."""
        blocks: Iterable[_LeftOut] = cls._left_out(config, examples, progress)
        usual: Mapping[str, float] = {}
        if cls.weighs_usual:
            blocks = list(blocks)
            usual = _usual_scores(blocks, examples.experts)
        each_usual = _usual_of(usual, examples.experts)
        known: list[Floats] = []
        margins: list[Floats] = []
        right: list[NDArray[np.bool_]] = []
        first: list[str] = []
        has_margin = True
        unknown: list[Floats] = []
        for block in blocks:
            has_margin = block.has_margin
            own_evidence, its_evidence = block.own_evidence, block.stranger_evidence
            if cls.weighs_usual:
                own_evidence = weighed(own_evidence, each_usual[block.owner])
                its_evidence = weighed(its_evidence, each_usual[block.stranger])
            unknown.append(its_evidence[np.isfinite(block.stranger_score)])
            is_known = np.isfinite(block.own_score)
            is_right = block.own_score > block.stranger_score
            winner = np.where(is_right, block.owner, block.stranger)
            first += [examples.experts[number] for number in winner[is_known].tolist()]
            with np.errstate(invalid="ignore"):
                ahead = block.own_score - block.stranger_score
                behind = block.stranger_score - np.maximum(block.own_score, block.second_score)
                gap = np.where(is_right, ahead, behind)
            known.append(np.where(is_right, own_evidence, its_evidence)[is_known])
            right.append(is_right[is_known])
            margins.append(np.where(np.isfinite(gap), gap, 1.0)[is_known])
        tops, gaps = _joined(known), _joined(margins)
        calibration = calibrate(tops, _joined(right).astype(bool), gaps, _joined(unknown), config.in_library_share)
        calibration = replace(calibration, usual=usual)
        return calibration.with_left_out(first, tops, gaps if has_margin else None, config.threshold)

    @classmethod
    def _left_out(cls, config: Any, examples: Examples, progress: Progress) -> Iterator[_LeftOut]:
        """What the method makes of each fold's examples after learning from the others, some at a time."""
        fold_of = _folds(examples.owner)
        none = Calibration(0.0, 1.0, 1.0)
        chosen = evenly_spaced(len(examples.texts), config.max_calibration)
        for fold in range(NUM_FOLDS):
            progress(fold, NUM_FOLDS)
            held_out = chosen[fold_of[chosen] == fold]
            rest = examples.take(np.flatnonzero(fold_of != fold))
            if not len(held_out) or not rest.texts:
                continue
            learned = cls._learnt(config, rest)
            router = cls(config.model_copy(update={"threshold": 0.0}), examples.experts, learned, none)
            for block in np.array_split(held_out, -(-len(held_out) // BLOCK)):
                tried = examples.take(block)
                yield router._judged(Prompts(tried.bare_texts, tried.bare_embeddings), tried.owner)
        progress(NUM_FOLDS, NUM_FOLDS)

    def _judged(self, prompts: Prompts, owner: NDArray[np.int32]) -> _LeftOut:
        """What this router, which has not seen these prompts, makes of them and their owners, shape (p,)."""
        judged = self.judge(prompts)
        rows = np.arange(len(owner))
        scores = np.where(np.isnan(judged.scores), -np.inf, judged.scores)
        own = scores[rows, owner].copy()
        scores[rows, owner] = -np.inf
        stranger = scores.argmax(axis=1)
        second = np.partition(scores, -2, axis=1)[:, -2] if scores.shape[1] > 1 else np.full(len(rows), -np.inf)
        own_evidence, its_evidence = (self._evidence(prompts, judged, each) for each in (owner, stranger))
        its_score = scores[rows, stranger]
        is_same = judged.evidence is judged.scores
        return _LeftOut(owner, stranger, own, its_score, second, own_evidence, its_evidence, is_same)


class _LeftOut(NamedTuple):
    """Some left-out examples, each with its own expert and with the best of the others, all of shape (p,).

    Scores are -inf where there are none; `second_score` is that of the second of the others. `has_margin`: whether
    scores are evidence, so that the distance of the two best tells something.
    """

    owner: NDArray[np.int32]
    stranger: NDArray[np.int64]
    own_score: Floats
    stranger_score: Floats
    second_score: Floats
    own_evidence: Floats
    stranger_evidence: Floats
    has_margin: bool


def weighed(scores: Any, usual: Any) -> Floats:
    """Evidence by the module's formula, shape as both."""
    return np.asarray(scores + CROWD_WEIGHT * (scores - usual), np.float64)


def _usual_scores(blocks: Sequence[_LeftOut], experts: Sequence[str]) -> dict[str, float]:
    """What is usual for each expert of which an example was scored."""
    if not blocks:
        return {}
    owner = np.concatenate([block.owner for block in blocks])
    own = np.concatenate([block.own_evidence for block in blocks])
    there = np.isfinite(own)
    counts = np.bincount(owner[there], minlength=len(experts))
    sums = np.bincount(owner[there], own[there].astype(np.float64), minlength=len(experts))
    scored = np.flatnonzero(counts)
    mean = float((sums[scored] / counts[scored]).mean()) if len(scored) else 0.0
    usual = (sums[scored] + USUAL_PRIOR * mean) / (counts[scored] + USUAL_PRIOR)
    return {experts[number]: value for number, value in zip(scored.tolist(), usual.tolist(), strict=True)}


def _usual_of(known: Mapping[str, float], experts: Sequence[str]) -> Floats:
    """What is usual for each of these, shape (E,); the mean of all known for an expert that came since."""
    mean = sum(known.values()) / len(known) if known else 0.0
    return np.array([known.get(expert, mean) for expert in experts], np.float64)


def asked(query: RouteQuery, card: MethodCard) -> Prompts:
    """What a decision is about: the prompt or, for methods that read the task, the task's last prompts.

    For methods that need embeddings those without one are left out, so that nothing may be left.
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


def equal_weights(ranked: Sequence[ScoredExpert]) -> tuple[WeightedExpert, ...]:
    """Weights of a mix that are all the same and sum to one."""
    return tuple(WeightedExpert(scored.expert_id, 1 / len(ranked)) for scored in ranked)


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


def _best_first(scores: Floats, allowed: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of the allowed experts, best first; ties go by number, which is by name."""
    if len(allowed) > most:
        least = -np.partition(-scores[allowed], most - 1)[most - 1]
        allowed = allowed[scores[allowed] >= least]
    return allowed[np.argsort(-scores[allowed], kind="stable")][:most]


def _joined(blocks: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(blocks) if blocks else np.empty(0)
