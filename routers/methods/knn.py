"""Router `knn`: the expert whose example prompts are nearest to the prompt, or none if nothing is near enough.

Shapes: n examples of all experts together, d dimensions, E experts; X (n, d) unit rows, q (d,) the prompt.

    N = the k examples nearest to q by cosine (FAISS, exact)                  (k,)
    score(e) = mean of the m largest cosines of expert e's examples           (E,)
    evidence(e) = score(e) + ½ (score(e) - crowd(e))                                  (E,)
    choose e = argmax score if evidence(e) ≥ threshold, else abstain

crowd(e) is the mean, over the same m examples, of how near each is to others of e: the mean of the m largest cosines of
that example without its template to e's other examples. So an expert whose prompts are all alike must be met more
closely than one whose prompts are about anything, and a score that is usual for the expert is its own evidence. With
scores alone people's tweets, which resemble nothing, had to pass the bar that short questions to an assistant set.

An expert with fewer than m examples is scored by the mean of those it has. Of an expert of which fewer than m examples
are in N, the missing ones count as the cosine of the k-th neighbour, the most that they can be. The mean of three was
as good as any of six (mean of the best one, two, three, five; votes weighted by similarity or its fourth power) on
public task data with 4, 16 and 32 examples an expert, and it is the easiest to explain: one stray example decides
nothing, and a cluster of phrasings does not outvote a better match. An example that is nearly the prompt itself counts
alone (from cosine 0.9; between 0.8 and 0.9 gradually), so that an expert whose few examples have little in common is
found by each of them. On the task data this changes nothing.

Threshold and confidence come from the library's own examples (`calibration`): each example, or an even sample of them,
is scored as if it were a prompt, with itself left out, and again with its whole expert left out. Examples of one expert
are often one template with the blanks filled differently, and then leaving one out is too rosy: its siblings answer for
it. So the prompt is the example without its template (`routers.text.templates`). Where it has none, the nearest quarter
of its expert's examples are left out with it, and near-duplicates (cosine > 0.95) in any case: about what a new
phrasing would meet.

Forbidden experts are excluded inside the search (an ID selector), so they are neither scored nor shown and cannot
crowd out others. Exact duplicates among one expert's examples count once.

Cost: a request reads X once, n · d multiplications (0.1 ms for 350 examples of 384 dimensions, about 5 ms
for 32,000); fitting scores at most `max_calibration` examples. Method: k-nearest-neighbour routing over example
embeddings, as in retrieval of adapters by example (LoraRetriever, Zhao et al., 2024) without training the encoder.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from routers.artefacts import check_router
from routers.base import (
    Artefact,
    Decision,
    FitData,
    Matrix,
    MethodCard,
    Progress,
    RouteQuery,
    RouterConfig,
    ScoredExpert,
    WeightedExpert,
)
from routers.errors import BadArtefact
from routers.families.calibration import CROWD_WEIGHT, IN_LIBRARY_SHARE, Calibration, calibrate, marks_of, still_holding
from routers.library.example_index import ExampleIndex, Near
from routers.library.examples import examples_of
from routers.maths.even_sample import evenly_spaced
from routers.maths.nearest_rows import nearest_own

_NEAR_DUPLICATE = 0.95
_ALIKE, _SAME_PROMPT = 0.8, 0.9
_SIBLINGS = 0.25


class KnnConfig(RouterConfig):
    """Options of `knn`."""

    k: int = Field(32, ge=1, le=1000, description="How many nearest examples are looked at.")
    num_evidence: int = Field(3, ge=1, le=50, description="An expert's score is the mean of this many best cosines.")
    threshold: float | None = Field(
        None,
        ge=-2,
        le=2,
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
    max_neighbours: int = Field(5, ge=0, description="How many nearest examples a decision quotes.")
    max_calibration: int = Field(512, ge=0, description="How many examples are scored to calibrate.")


class KnnRouter:
    """k nearest examples; see the module's docstring."""

    card: ClassVar[MethodCard] = MethodCard(
        name="knn",
        title="k nearest example prompts",
        paper="Zhao et al., LoraRetriever, 2024 (arXiv:2402.09997), with an untrained encoder",
        expert_training="independent",
        expert_data="private; a few example prompts are shared",
        routing_dataset="example prompts of each expert",
        input_granularity="example",
        depth="model",
        selection="top-1",
        aggregation="none",
        generalization="in-domain prompts in new words; abstains on others",
        user_dataset="none",
        needs=("examples",),
        refit="cheap",
        cost="one exact nearest-neighbour search over all examples",
        differences=(
            "the encoder is not fine-tuned on routing data",
            "one expert is chosen; mixing is another policy",
        ),
    )
    config_class: ClassVar[type[RouterConfig]] = KnnConfig

    def __init__(
        self, config: KnnConfig, library: ExampleIndex, crowd: NDArray[np.float32], calibration: Calibration
    ) -> None:
        self.config = config
        self._library = library
        self._crowd = crowd
        self.calibration = calibration
        self.threshold = calibration.threshold if config.threshold is None else config.threshold

    @classmethod
    def fit(cls, config: KnnConfig, data: FitData, progress: Progress) -> Artefact:
        """Gather the examples and calibrate; under a second for 1,000 experts with 32 examples each."""
        examples = examples_of(data)
        marks = marks_of(data.experts)
        crowd = nearest_own(examples.bare_embeddings, examples.embeddings, examples.owner, config.num_evidence)
        calibration = still_holding(data.previous, cls, config, marks)
        if calibration is None:
            library = ExampleIndex(examples.embeddings, examples.owner, list(examples.experts), list(examples.texts))
            calibration = _calibrated(config, library, examples.bare_embeddings, crowd, progress).to(marks)
        return Artefact(
            router=cls.card.name,
            arrays={"embeddings": examples.embeddings, "owner": examples.owner, "crowd": crowd},
            data={
                "experts": list(examples.experts),
                "examples": list(examples.texts),
                **calibration.dump(),
            },
            library_version=data.version,
            embedder=data.embedder,
        )

    @classmethod
    def load(cls, config: KnnConfig, artefact: Artefact) -> Self:
        """Index the artefact's examples; raises `BadArtefact` if it is not one of `fit`."""
        check_router(artefact, cls.card.name)
        try:
            data, arrays = artefact.data, artefact.arrays
            embeddings = np.asarray(arrays["embeddings"], np.float32)
            owner = np.asarray(arrays["owner"], np.int32)
            crowd = np.asarray(arrays["crowd"], np.float32)
            experts, texts = [str(e) for e in data["experts"]], [str(t) for t in data["examples"]]
            calibration = Calibration.load(data)
        except (KeyError, TypeError, ValueError) as error:
            raise BadArtefact(f"a knn artefact lacks or garbles {error}") from error
        fits = embeddings.ndim == 2 and owner.shape == crowd.shape == (len(texts),) and len(embeddings) == len(texts)
        if not fits or (len(owner) and not 0 <= int(owner.min()) <= int(owner.max()) < len(experts)):
            raise BadArtefact("the arrays of a knn artefact do not fit together")
        return cls(config, ExampleIndex(embeddings, owner, experts, texts), crowd, calibration)

    def route(self, query: RouteQuery) -> Decision:
        """Decide; see the module's docstring for the formula."""
        if query.embedding is None or not np.isfinite(query.embedding).all():
            return Decision((), 0.0, reason="The prompt has no text that could be compared.")
        near = self._library.nearest(query.embedding, self.config.k, query.candidates)
        if not len(near.rows):
            return Decision((), 0.0, reason="No expert that may be used has an example.")
        judged = judge(near, self._library.owner, self.config.num_evidence, self._library.num_examples, self._crowd)
        by_name = {self._library.experts[expert]: found for expert, found in judged.items()}
        ranked = sorted(by_name.items(), key=lambda pair: (-pair[1].score, pair[0]))
        (best, (score, evidence)), others = ranked[0], ranked[1:]
        margin = score - others[0][1].score if others else None
        confidence = self.calibration.confidence(evidence, margin)
        threshold = self.threshold if query.threshold is None else query.threshold
        chosen = evidence >= threshold
        relation = "reaches" if chosen else "is below"
        return Decision(
            experts=(WeightedExpert(best),) if chosen else (),
            confidence=confidence,
            candidates=tuple(ScoredExpert(e, found.score) for e, found in ranked[: self.config.max_candidates]),
            neighbours=self._library.quote(near, self.config.max_neighbours),
            reason=f"Evidence {evidence:.3f} for {best} {relation} the threshold {threshold:.3f}.",
        )


class Judged(NamedTuple):
    """What is said of an expert: its score, which ranks, and the evidence that it fits."""

    score: float
    evidence: float


def judge(
    near: Near,
    owner: NDArray[np.int32],
    num_evidence: int,
    num_examples: NDArray[np.int64],
    crowd: NDArray[np.float32],
) -> dict[int, Judged]:
    """Each expert that has an example among the neighbours.

    Args:
        near: The neighbours, best first.
        owner: Expert of each example, shape (n,).
        num_evidence: m.
        num_examples: How many each expert has, shape (E,).
        crowd: How near each example is to others of its expert, shape (n,).
    """
    if not len(near.rows):
        return {}
    found: dict[int, list[tuple[float, float]]] = {}
    for expert, cosine, usual in zip(
        owner[near.rows].tolist(), near.cosines.tolist(), crowd[near.rows].tolist(), strict=True
    ):
        best = found.setdefault(expert, [])
        if len(best) < num_evidence:
            best.append((cosine, usual))
    last = float(near.cosines[-1])
    result = {}
    for expert, best in found.items():
        needed = max(len(best), min(num_evidence, int(num_examples[expert])))
        nearest, its_usual = best[0]
        mean = (sum(cosine for cosine, _ in best) + last * (needed - len(best))) / needed
        usual = sum(usual for _, usual in best) / len(best)
        alone = min(max((nearest - _ALIKE) / (_SAME_PROMPT - _ALIKE), 0.0), 1.0)
        score = mean + alone * (nearest - mean)
        result[expert] = Judged(score, score + CROWD_WEIGHT * (score - usual - alone * (its_usual - usual)))
    return result


# -- calibration --------------------------------------------------------------------------------------------------


def _calibrated(
    config: KnnConfig, library: ExampleIndex, bare: Matrix, crowd: NDArray[np.float32], progress: Progress
) -> Calibration:
    """Score an even sample of the bare examples with themselves left out, and with their experts left out."""
    sample = evenly_spaced(len(library.texts), config.max_calibration)
    most_own = int(library.num_examples.max(initial=0))
    known: list[float] = []
    margins: list[float] = []
    right: list[bool] = []
    chosen: list[str] = []
    unknown: list[float] = []
    block = 128

    def best_two(near: Near, num_examples: NDArray[np.int64]) -> list[tuple[int, Judged]]:
        found = judge(near, library.owner, config.num_evidence, num_examples, crowd)
        return sorted(found.items(), key=lambda pair: (-pair[1].score, pair[0]))[:2]

    for start in range(0, len(sample), block):
        rows = sample[start : start + block]
        is_bare = (bare[rows] != library.embeddings[rows]).any(axis=1)
        found = library.nearest_to_examples(rows, config.k + most_own, bare[rows])
        for row, near, has_no_template in zip(rows, found, is_bare.tolist(), strict=True):
            own = int(library.owner[row])
            is_own = library.owner[near.rows] == own
            strangers = Near(near.rows[~is_own][: config.k], near.cosines[~is_own][: config.k])
            if top := best_two(strangers, library.num_examples):
                unknown.append(top[0][1].evidence)
            share = 0.0 if has_no_template else _SIBLINGS
            kept = _without_siblings(near, is_own, int(share * (library.num_examples[own] - 1)))
            if kept is None:
                continue
            others = Near(near.rows[kept][: config.k], near.cosines[kept][: config.k])
            num_examples = library.num_examples.copy()
            num_examples[own] = int((is_own & kept).sum())
            top = best_two(others, num_examples)
            known.append(top[0][1].evidence)
            right.append(top[0][0] == own)
            chosen.append(library.experts[top[0][0]])
            margins.append(top[0][1].score - top[1][1].score if len(top) > 1 else 1.0)
        progress(min(start + block, len(sample)), len(sample))
    scores, gaps = np.array(known, np.float64), np.array(margins, np.float64)
    is_right, strange = np.array(right, dtype=bool), np.array(unknown, np.float64)
    calibration = calibrate(scores, is_right, gaps, strange, config.in_library_share)
    return calibration.with_left_out(chosen, scores, gaps, config.threshold)


def _without_siblings(near: Near, is_own: NDArray[np.bool_], num_siblings: int) -> NDArray[np.bool_] | None:
    """Which neighbours of a left-out example stay; None if none of its own expert's do.

    Out go the example itself (the first of its own), its near-duplicates, and the nearest of the others.
    """
    own_rank = np.cumsum(is_own) - 1
    out = is_own & ((own_rank <= num_siblings) | (near.cosines > _NEAR_DUPLICATE))
    return ~out if (is_own & ~out).any() else None
