"""Router `knn`: the expert whose example prompts are nearest to the prompt, or none if nothing is near enough.

Shapes: n examples of all experts together, d dimensions, E experts; X (n, d) unit rows, q (d,) the prompt.

    N = the k examples nearest to q by cosine (FAISS, exact)                  (k,)
    score(e) = mean of the m largest cosines of expert e's examples           (E,)
    evidence(e) = score(e) + ½ (score(e) - density(e))                        (E,)
    choose e = argmax score if evidence(e) ≥ threshold, else abstain

density(e) says how close e's examples are to each other. It is the mean over the same m examples, each taken without
its template, of the mean of its m largest cosines to e's other examples. So an expert with homogeneous examples needs a
closer match than one with varied examples.

Threshold and confidence come from the library's own examples (`routers.families.calibration`). Each of them, or an even
sample, is scored as if it were a prompt, once with itself held out and once with its whole expert held out.

Forbidden experts are excluded inside the search (an ID selector), so they are neither scored nor shown and cannot
crowd out others. Exact duplicates among one expert's examples count once.

Cost: a request reads X once, n · d multiplications (0.1 ms for 350 examples of 384 dimensions, about 5 ms for 32,000);
fitting scores at most `max_calibration` examples. Method: k-nearest-neighbour routing over example embeddings, as in
retrieval of adapters by example (LoraRetriever, Zhao et al., 2024) without training the encoder.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from routers.artefacts import reading
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
from routers.families.calibration import Calibration
from routers.families.cards import EMBEDDING_CARD
from routers.families.held_out import HeldOut, calibrate_on, calibration_for
from routers.families.options import THRESHOLD_HELP, CalibrationOptions
from routers.families.typicality import TYPICALITY_WEIGHT
from routers.library.example_index import ExampleIndex, Near
from routers.library.examples import examples_of
from routers.maths.even_sample import evenly_spaced
from routers.maths.nearest_rows import nearest_own

_BLOCK = 128
_DUPLICATE_COSINE = 0.95
_SIMILAR_COSINE, _SAME_PROMPT_COSINE = 0.8, 0.9
_SIBLING_SHARE = 0.25


class KnnConfig(CalibrationOptions):
    """Options of `knn`."""

    k: int = Field(32, ge=1, le=1000, description="Number of nearest examples that are considered.")
    num_evidence: int = Field(3, ge=1, le=50, description="An expert's score is the mean of this many best cosines.")
    threshold: float | None = Field(None, ge=-2, le=2, description=THRESHOLD_HELP)
    max_neighbours: int = Field(5, ge=0, description="Number of nearest examples that a decision quotes at most.")
    max_calibration: int = Field(512, ge=0, description="Number of examples that are scored to calibrate, at most.")


class KnnRouter:
    """Routes to the expert whose examples are nearest to the prompt.

    Args:
        config: The router's options.
        library: The library's examples, searchable.
        density: How close each example is to others of its expert, shape (n,).
        calibration: Threshold and confidence.
    """

    card: ClassVar[MethodCard] = replace(
        EMBEDDING_CARD,
        name="knn",
        title="k nearest example prompts",
        paper="Zhao et al., LoraRetriever, 2024 (arXiv:2402.09997), with an untrained encoder",
        generalization="in-domain prompts in new words; abstains on others",
        cost="one exact nearest-neighbour search over all examples",
        differences=(
            "the encoder is not fine-tuned on routing data",
            "one expert is chosen; mixing is another policy",
        ),
        standing="recommended",
    )
    config_class: ClassVar[type[RouterConfig]] = KnnConfig

    def __init__(
        self, config: KnnConfig, library: ExampleIndex, density: NDArray[np.float32], calibration: Calibration
    ) -> None:
        self.config = config
        self._library = library
        self._density = density
        self.calibration = calibration
        self.threshold = calibration.threshold if config.threshold is None else config.threshold

    @classmethod
    def fit(cls, config: KnnConfig, data: FitData, progress: Progress) -> Artefact:
        """Collect the examples and calibrate; takes less than a second for 1,000 experts with 32 examples each."""
        examples = examples_of(data)
        density = nearest_own(examples.bare_embeddings, examples.embeddings, examples.owner, config.num_evidence)

        def calibrate_again() -> Calibration:
            library = ExampleIndex(examples.embeddings, examples.owner, list(examples.experts), list(examples.texts))
            return _calibrated(config, library, examples.bare_embeddings, density, progress)

        calibration = calibration_for(data, cls, config, calibrate_again)
        return Artefact(
            router=cls.card.name,
            arrays={
                "embeddings": examples.embeddings,
                "owner": examples.owner,
                "crowd": density,  # the name of this array in stored artefacts
            },
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
        """Index the examples of an artefact of `fit`; raises `BadArtefact`."""
        with reading(artefact, cls.card.name):
            data, arrays = artefact.data, artefact.arrays
            embeddings = np.asarray(arrays["embeddings"], np.float32)
            owner = np.asarray(arrays["owner"], np.int32)
            density = np.asarray(arrays["crowd"], np.float32)
            experts, texts = [str(e) for e in data["experts"]], [str(t) for t in data["examples"]]
            calibration = Calibration.load(data)
            num = len(texts)
            if embeddings.ndim != 2 or not owner.shape == density.shape == (len(embeddings),) == (num,):
                raise ValueError(f"arrays of different lengths for {num} examples")
            if num and not 0 <= int(owner.min()) <= int(owner.max()) < len(experts):
                raise ValueError("examples of an unknown expert")
        return cls(config, ExampleIndex(embeddings, owner, experts, texts), density, calibration)

    def route(self, query: RouteQuery) -> Decision:
        """Choose the expert with the nearest examples if its evidence reaches the threshold."""
        if query.embedding is None or not np.isfinite(query.embedding).all():
            return Decision((), 0.0, reason="The prompt has no text that can be compared.")
        near = self._library.nearest(query.embedding, self.config.k, query.candidates)
        if not len(near.rows):
            return Decision((), 0.0, reason="No allowed expert has an example.")
        judged = judge(near, self._library.owner, self.config.num_evidence, self._library.num_examples, self._density)
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
    """The score of an expert, which ranks it, and the evidence that it fits."""

    score: float
    evidence: float


def judge(
    near: Near,
    owner: NDArray[np.int32],
    num_evidence: int,
    num_examples: NDArray[np.int64],
    density: NDArray[np.float32],
) -> dict[int, Judged]:
    """Judge each expert that has an example among the neighbours.

    Args:
        near: The neighbours, best first.
        owner: Expert of each example, shape (n,).
        num_evidence: Number of best cosines that count, m.
        num_examples: Number of examples of each expert, shape (E,).
        density: How close each example is to others of its expert, shape (n,).
    """
    if not len(near.rows):
        return {}
    found: dict[int, list[tuple[float, float]]] = {}
    for expert, cosine, its_density in zip(
        owner[near.rows].tolist(), near.cosines.tolist(), density[near.rows].tolist(), strict=True
    ):
        best = found.setdefault(expert, [])
        # The mean of three was as good as any of six scores (mean of the best one, two, three or five; votes weighted
        # by similarity or its fourth power) on public task data with 4, 16 and 32 examples an expert. One stray example
        # does not decide, and many similar examples do not outvote a better match.
        if len(best) < num_evidence:
            best.append((cosine, its_density))
    last = float(near.cosines[-1])
    result = {}
    for expert, best in found.items():
        # An expert with fewer than m examples is scored by those it has. Examples outside N count with the cosine of
        # the k-th neighbour, the largest that they can have.
        needed = max(len(best), min(num_evidence, int(num_examples[expert])))
        nearest, nearest_density = best[0]
        mean = (sum(cosine for cosine, _ in best) + last * (needed - len(best))) / needed
        expected = sum(its_density for _, its_density in best) / len(best)
        # An example that is almost the prompt itself counts alone (from cosine 0.9, gradually from 0.8), so that an
        # expert with few and unrelated examples is found by each of them.
        alone = min(max((nearest - _SIMILAR_COSINE) / (_SAME_PROMPT_COSINE - _SIMILAR_COSINE), 0.0), 1.0)
        score = mean + alone * (nearest - mean)
        excess = score - expected - alone * (nearest_density - expected)
        result[expert] = Judged(score, score + TYPICALITY_WEIGHT * excess)
    return result


# -- calibration --------------------------------------------------------------------------------------------------


def _calibrated(
    config: KnnConfig, library: ExampleIndex, bare: Matrix, density: NDArray[np.float32], progress: Progress
) -> Calibration:
    """Calibrate on an even sample of the examples, each without its template."""
    sample = evenly_spaced(len(library.texts), config.max_calibration)
    blocks = []
    for start in range(0, len(sample), _BLOCK):
        rows = sample[start : start + _BLOCK]
        blocks.append(_held_out(config, library, rows, bare[rows], density))
        progress(min(start + _BLOCK, len(sample)), len(sample))
    return calibrate_on(blocks, library.experts, config)


def _held_out(
    config: KnnConfig, library: ExampleIndex, rows: NDArray[np.int64], bare: Matrix, density: NDArray[np.float32]
) -> HeldOut:
    """Score examples with themselves held out, and with their whole expert held out."""

    def best_two(near: Near, num_examples: NDArray[np.int64]) -> list[tuple[int, Judged]]:
        judged = judge(near, library.owner, config.num_evidence, num_examples, density)
        return sorted(judged.items(), key=lambda pair: (-pair[1].score, pair[0]))[:2]

    evidence: list[float] = []
    is_right: list[bool] = []
    first: list[int] = []
    margins: list[float] = []
    unknown: list[float] = []
    max_own = int(library.num_examples.max(initial=0))
    has_template = (bare != library.embeddings[rows]).any(axis=1)
    found = library.nearest_to_examples(rows, config.k + max_own, bare)
    for row, near, is_bare in zip(rows, found, has_template.tolist(), strict=True):
        own = int(library.owner[row])
        is_own = library.owner[near.rows] == own
        others = Near(near.rows[~is_own][: config.k], near.cosines[~is_own][: config.k])
        if top := best_two(others, library.num_examples):
            unknown.append(top[0][1].evidence)
        # Examples of one expert often fill the blanks of one template, and then an example's siblings answer for it.
        # Without its template it meets them about as a new phrasing would. Where there is no template to remove, the
        # nearest quarter of its expert's examples is held out with it.
        num_siblings = 0 if is_bare else int(_SIBLING_SHARE * (library.num_examples[own] - 1))
        kept = _without_siblings(near, is_own, num_siblings)
        if kept is None:
            continue
        rest = Near(near.rows[kept][: config.k], near.cosines[kept][: config.k])
        num_examples = library.num_examples.copy()
        num_examples[own] = int((is_own & kept).sum())
        top = best_two(rest, num_examples)
        evidence.append(top[0][1].evidence)
        is_right.append(top[0][0] == own)
        first.append(top[0][0])
        margins.append(top[0][1].score - top[1][1].score if len(top) > 1 else 1.0)
    return HeldOut(
        np.array(evidence, np.float64),
        np.array(is_right, bool),
        np.array(first, np.int64),
        np.array(margins, np.float64),
        np.array(unknown, np.float64),
    )


def _without_siblings(near: Near, is_own: NDArray[np.bool_], num_siblings: int) -> NDArray[np.bool_] | None:
    """Return which neighbours of a held-out example stay; None if none of its own expert's do.

    The example itself (the first of its own expert), its near-duplicates, and the nearest of its siblings are removed.
    """
    own_rank = np.cumsum(is_own) - 1
    out = is_own & ((own_rank <= num_siblings) | (near.cosines > _DUPLICATE_COSINE))
    return ~out if (is_own & ~out).any() else None
