"""Router `two_part`: an instruction and its content speak for an expert each by itself.

People wrap the same content in other words than an expert's examples do ("serious or joking?" after a tweet), or leave
the instruction away. Whole prompts are then far from whole examples. So the prompt's first and last segment
(`routers.text.segments`) are each asked whether they are an instruction, and what is left is compared with examples
without their template (`routers.text.templates`).

    cues(e)      instructions of e: templates, and first and last segments, of at least a fiftieth of its examples
    i(s)         P(segment s is an instruction) = σ(w₁ · largest cosine to a cue + w₂ · mean of the 3 largest cosines
                 to segments of contents + w₀), a logistic regression on the library's own cues and contents
    s            the first or the last segment, whichever has the larger i;   g = i(s)
    content c    the prompt without s if g > ½, else the prompt
    near_B(e)    mean of the 3 largest cosines of c to e's examples without their template
    near_F(e)    mean of the 3 largest cosines of the prompt to e's whole examples
    score(e)    = ½ (near_B(e) + near_F(e)) + g · largest cosine of s to cues(e)

The best score is chosen, but whether it is good enough is asked of another sum, the chosen expert's

    evidence(e) = near_B(e) + ½ mean over those 3 examples x of (cos(c, x) - r_x) + g · largest cosine of s to cues(e)

r_x being how near x is to its own expert's other examples: in a crowd a neighbour must be nearer to count.

The detector's positives are the cues (at most 300) and pieces of two to four words of them, each compared with the cues
that share no pair of words with it, as if it had been said in new words; its negatives are segments of contents. Lots
are drawn by a text's hash: what is drawn from a library is nearly the same after an expert has come or gone, so that
few texts have to be embedded then, and it is the same whether or not the policy followed from an earlier one.

Everything is learnt from the examples. On public task data (11 experts, 1,078 prompts in words that no expert has seen,
100 prompts out of scope) the right expert was ranked first for 95 % with 200 examples an expert and for 90 % with 32,
where `knn` has 88 % and 83 %; AUROC 0.97 and 0.94, where `knn` has 0.93 and 0.88. Design and weights were chosen on
prompts of these tasks, so expect a little less elsewhere. Instructions of an expert that is not there count as content.

Cost: embeddings of up to four more pieces of the prompt; two products with all examples (at most `max_examples` each).
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from heapq import nsmallest
from itertools import chain, pairwise
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from sklearn.linear_model import LogisticRegression

from routers.base import Floats, Matrix, MethodCard, Vector
from routers.families.cross_validation import BLOCK
from routers.families.options import CalibrationOptions
from routers.families.scoring import Judgement, Learned, Prompts, Scores, ScoringRouter
from routers.families.typicality import TYPICALITY_WEIGHT
from routers.library.examples import Examples, evenly, rows_by_expert
from routers.maths.largest import mean_of_largest
from routers.maths.nearest_rows import nearest_mean, nearest_mean_and_rows, nearest_own, places_of
from routers.maths.sigmoid import sigmoids
from routers.text.segments import parts_of
from routers.text.templates import take_apart

NEAREST = 3
CUE_SHARE, MIN_CUE_EXAMPLES, MIN_CUE_WORDS = 0.02, 3, 2
NUM_CONTENTS = 500
MAX_POSITIVES = 300
NUM_PIECES = 6
CONTENT_IF_ABOVE = 0.5

_WORD = re.compile(r"\S+")


class TwoPartConfig(CalibrationOptions):
    """Options of `two_part`."""

    max_examples: int = Field(400, ge=1, le=2000, description="Examples of an expert that are compared, evenly taken.")


class TwoPartRouter(ScoringRouter):
    """Instruction and content apart; see the module's docstring."""

    card: ClassVar[MethodCard] = MethodCard(
        name="two_part",
        title="Instruction and content, each for itself",
        paper="none: made for this project, after nearest-neighbour routing",
        expert_training="independent",
        expert_data="private; example prompts are shared",
        routing_dataset="example prompts of each expert",
        input_granularity="example",
        depth="model",
        selection="top-1",
        aggregation="none",
        generalization="in-domain prompts in new words, bare or with other instructions; abstains on others",
        user_dataset="none",
        needs=("examples",),
        reads_parts=True,
        cost="embeddings of the prompt's parts, two products with all examples",
    )
    config_class: ClassVar[type[CalibrationOptions]] = TwoPartConfig
    adjusts_for_typicality: ClassVar[bool] = False  # its evidence includes the density of the examples

    # -- learning -------------------------------------------------------------------------------------------------

    @classmethod
    def learn(cls, config: TwoPartConfig, examples: Examples) -> Learned:
        """Cues, contents and the detector; examples sorted by expert, whole and bare, and how crowded each is."""
        cues: list[str] = []
        cue_owner: list[int] = []
        segments: set[tuple[int, str]] = set()
        for expert, rows in rows_by_expert(examples.owner):
            found, pieces = _cues_and_segments(tuple(examples.texts[row] for row in rows.tolist()))
            cues += found
            cue_owner += [expert] * len(found)
            segments |= pieces
        contents = [text for _, text in nsmallest(2 * NUM_CONTENTS, segments)]
        known, others = contents[:NUM_CONTENTS], contents[NUM_CONTENTS : 2 * NUM_CONTENTS] or contents[:NUM_CONTENTS]
        cue_rows, content_rows = examples.embed(cues), examples.embed(known)
        owner = np.array(cue_owner, np.int32)
        detector = np.array([0.0, 0.0, -30.0])  # without a cue nothing is an instruction
        tried = list(dict.fromkeys([*others, *chain(*_positives(cues).values())])) if cues and others else []
        row_of = dict(zip(tried, examples.embed(tried), strict=True)) if tried else {}
        if tried:
            positives = _cue_features(cues, owner, cue_rows, content_rows, row_of)
            asked = np.stack([row_of[text] for text in others])
            negatives = np.stack(
                [mean_of_largest(asked @ cue_rows.T, 1), _largest_of_others(asked, content_rows)], axis=1
            )
            features, labels = (
                np.concatenate([positives, negatives]),
                np.repeat([1, 0], [len(positives), len(negatives)]),
            )
            fitted = LogisticRegression(C=10, class_weight="balanced").fit(features, labels)
            detector = np.append(fitted.coef_[0], fitted.intercept_)
        kept = examples.take(evenly(examples, config.max_examples))
        kept = kept.take(np.argsort(kept.owner, kind="stable"))
        return Learned(
            {
                "cues": cue_rows,
                "cue_owner": owner,
                "contents": content_rows,
                "detector": detector,
                "whole": kept.embeddings,
                "bare": kept.bare_embeddings,
                "owner": kept.owner,
                "crowd": nearest_own(kept.bare_embeddings, kept.bare_embeddings, kept.owner, NEAREST),
                "tried": np.stack(list(row_of.values())) if tried else cue_rows[:0],
            },
            {"cues": cues, "contents": known, "tried": tried},
        )

    def prepare(self, learned: Learned) -> None:
        """Lay the examples of each expert side by side."""
        arrays = learned.arrays
        self._cues = np.asarray(arrays["cues"], np.float32)
        self._contents = np.asarray(arrays["contents"], np.float32)
        self._whole, self._bare = (np.asarray(arrays[name], np.float32) for name in ("whole", "bare"))
        self._detector = np.asarray(arrays["detector"], np.float64)
        self._crowd = np.asarray(arrays["crowd"], np.float64)
        num_experts = len(self.experts)
        self._cue_places = places_of(np.asarray(arrays["cue_owner"]), num_experts)
        self._places = places_of(np.asarray(arrays["owner"]), num_experts)
        if not len(self._whole) == len(self._bare) == len(self._crowd) == len(arrays["owner"]):
            raise ValueError("examples, bare examples and owners of different numbers")
        if self._detector.shape != (3,) or len(self._cues) != len(arrays["cue_owner"]):
            raise ValueError("a detector or cues of another shape")
        self._embedded: dict[str, Vector] = {}
        for name in ("cues", "contents", "tried"):
            texts = (str(text) for text in learned.data[name])
            self._embedded.update(zip(texts, np.asarray(arrays[name], np.float32), strict=True))

    def embedded(self) -> Mapping[str, Vector]:
        """Cues, contents, and what the detector was tried on."""
        return self._embedded if self.experts else {}

    # -- routing --------------------------------------------------------------------------------------------------

    def scores(self, prompts: Prompts) -> Scores:
        """What ranks; see `judge`."""
        return self.judge(prompts).scores

    def judge(self, prompts: Prompts) -> Judgement:
        """Scores and evidence by the module's formulas."""
        parts = prompts.parts
        if parts is None:
            parts = np.repeat(prompts.embeddings[:, None], 4, axis=1)
        likely = self._instruction(parts[:, :2].reshape(-1, parts.shape[2])).reshape(-1, 2)
        end = likely.argmax(axis=1)
        rows = np.arange(len(end))
        gain = likely[rows, end]
        is_apart = gain > CONTENT_IF_ABOVE
        content = np.where(is_apart[:, None], parts[rows, 2 + end], prompts.embeddings)
        cue = nearest_mean(parts[rows, end] @ self._cues.T, self._cue_places, 1)
        bare, chosen = nearest_mean_and_rows(content @ self._bare.T, self._places, NEAREST)
        whole = nearest_mean(prompts.embeddings @ self._whole.T, self._places, NEAREST)
        apart = bare - self._crowd_of(chosen)
        said = gain[:, None] * np.nan_to_num(cue)
        return Judgement(0.5 * (bare + whole) + said, bare + TYPICALITY_WEIGHT * apart + said)

    def _crowd_of(self, rows: NDArray[np.int64]) -> Floats:
        """Mean crowd of the examples found, shape (p, E); 0 where there are none."""
        if not len(self._crowd):
            return np.zeros(rows.shape[:2])
        there = rows >= 0
        sums = np.where(there, self._crowd[rows], 0.0).sum(axis=2)
        return np.asarray(sums / np.maximum(there.sum(axis=2), 1), np.float64)

    def _instruction(self, rows: Matrix) -> Floats:
        """P(instruction) of segments, shape (p,)."""
        if not len(self._cues):
            return np.zeros(len(rows))
        features = np.stack(
            [mean_of_largest(rows @ self._cues.T, 1), mean_of_largest(rows @ self._contents.T, NEAREST)], axis=1
        )
        return sigmoids(features @ self._detector[:2] + self._detector[2])


def _lot(text: str) -> int:
    """A number that is a text's own, for drawing."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@lru_cache(maxsize=16384)
def _cues_and_segments(texts: tuple[str, ...]) -> tuple[list[str], frozenset[tuple[int, str]]]:
    """Instructions of one expert, sorted, and the first and last segments of its contents, each with its lot.

    Remembered for refits.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(set(parts_of(text)[:2]))
    counts.update(example.template for example in take_apart(texts) if example.template)
    needed = max(MIN_CUE_EXAMPLES, CUE_SHARE * len(texts))
    cues = sorted(cue for cue, num in counts.items() if num >= needed and len(_WORD.findall(cue)) >= MIN_CUE_WORDS)
    segments = {part for example in take_apart(texts) for part in parts_of(example.content)[:2]}
    return cues, frozenset((_lot(segment), segment) for segment in segments)


def _positives(cues: Iterable[str]) -> dict[int, list[str]]:
    """What stands for instructions: some of the cues, by their place, each with pieces of it."""
    drawn = nsmallest(MAX_POSITIVES, ((_lot(cue), number, cue) for number, cue in enumerate(cues)))
    return {number: [cue, *_pieces(cue)] for _, number, cue in sorted(drawn, key=lambda each: each[1])}


def _cue_features(
    cues: Sequence[str],
    owner: NDArray[np.int32],
    cue_rows: Matrix,
    content_rows: Matrix,
    row_of: Mapping[str, Vector],
) -> Floats:
    """The detector's two features of each cue and of pieces of it, as if its own words had never been seen."""
    chosen = _positives(cues)
    rows = np.stack([row_of[piece] for pieces in chosen.values() for piece in pieces])
    of_cue = np.repeat(list(chosen), [len(pieces) for pieces in chosen.values()])
    nearest = np.zeros(len(rows))
    for start in range(0, len(rows), BLOCK):  # a library of many experts has many cues
        cosines = rows[start : start + BLOCK] @ cue_rows.T
        for number in dict.fromkeys(of_cue[start : start + BLOCK].tolist()):
            cosines[np.ix_(of_cue[start : start + BLOCK] == number, _alike(number, cues, owner))] = -np.inf
        nearest[start : start + BLOCK] = mean_of_largest(cosines, 1)
    nearest[np.isneginf(nearest)] = 0.0
    return np.stack([nearest, mean_of_largest(rows @ content_rows.T, NEAREST)], axis=1)


def _alike(number: int, cues: Sequence[str], owner: NDArray[np.int32]) -> list[int]:
    """Cues of the same expert that share a pair of words with this one, itself among them."""
    pairs = _pairs(cues[number])
    siblings = np.flatnonzero(owner == owner[number]).tolist()
    return [other for other in siblings if other == number or _pairs(cues[other]) & pairs]


@lru_cache(maxsize=16384)
def _pieces(text: str) -> tuple[str, ...]:
    rng = random.Random(_lot(text))  # noqa: S311 (no secret is drawn)
    words = _WORD.findall(text)
    found = set()
    for _ in range(NUM_PIECES):
        num = rng.randint(2, 4)
        if len(words) > num:
            start = rng.randrange(len(words) - num + 1)
            found.add(" ".join(words[start : start + num]))
    return tuple(sorted(found))


def _pairs(text: str) -> set[tuple[str, str]]:
    words = _WORD.findall(text.lower())
    return set(pairwise(words))


def _largest_of_others(rows: Matrix, among: Matrix) -> Floats:
    """The same, but of what is not the row itself."""
    cosines = rows @ among.T
    cosines[cosines > 0.9999] = -1.0
    return mean_of_largest(cosines, min(NEAREST, max(1, cosines.shape[1] - 1)))
