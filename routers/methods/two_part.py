"""Router `two_part`: compares a prompt's instruction and its content with the experts' examples separately.

People phrase the instruction differently from an expert's examples ("serious or joking?" after a tweet), or omit it.
Whole prompts are then far from whole examples. So the prompt's first and last segments (`routers.text.segments`) are
each tested for being an instruction, and the rest is compared with examples without their template
(`routers.text.templates`).

    cues(e)      instructions of e: templates, and first and last segments, of at least a fiftieth of its examples
    i(s)         P(segment s is an instruction) = σ(w₁ · largest cosine to a cue + w₂ · mean of the 3 largest cosines
                 to segments of contents + w₀), a logistic regression on the library's own cues and contents
    s            the first or the last segment, whichever has the larger i;   g = i(s)
    content c    the prompt without s if g > ½, else the prompt
    near_B(e)    mean of the 3 largest cosines of c to e's examples without their template
    near_F(e)    mean of the 3 largest cosines of the prompt to e's whole examples
    score(e)    = ½ (near_B(e) + near_F(e)) + g · largest cosine of s to cues(e)

The expert with the best score is chosen if its evidence, another sum, reaches the threshold:

    evidence(e) = near_B(e) + ½ mean over those 3 examples x of (cos(c, x) - r_x) + g · largest cosine of s to cues(e)

r_x is the density of x, its closeness to its own expert's other examples. In a dense region an example counts as
evidence only if it is nearer.

The detector's positives are the cues (at most 300) and pieces of two to four words of them. Each is compared only with
the cues that share no pair of words with it, as if it were a new phrasing. The negatives are segments of contents.
Draws depend on a hash of the text. So a library draws almost the same texts after an expert is added or removed, few
texts have to be embedded then, and the result does not depend on earlier fits.

Everything is learned from the examples. On public task data (11 experts, 1,078 prompts in words that no expert has
seen, 100 out-of-scope prompts) the right expert was ranked first for 95 % with 200 examples an expert and for 90 % with
32, where `knn` has 88 % and 83 %; AUROC is 0.97 and 0.94, where `knn` has 0.93 and 0.88. Design and weights were chosen
on prompts of these tasks, so expect slightly less elsewhere. Instructions of an expert that is not in the library count
as content.

Cost: embeddings of up to four more pieces of the prompt; two products with all examples (up to `max_examples` each).
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from heapq import nsmallest
from itertools import chain, pairwise
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from sklearn.linear_model import LogisticRegression

from routers.base import Floats, Matrix, MethodCard, Vector
from routers.families.cards import EMBEDDING_CARD
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

    max_examples: int = Field(
        400, ge=1, le=2000, description="Number of examples of an expert that are compared at most, evenly spaced."
    )


class TwoPartRouter(ScoringRouter):
    """Compares a prompt's instruction and its content with the examples separately."""

    card: ClassVar[MethodCard] = replace(
        EMBEDDING_CARD,
        name="two_part",
        title="Instruction and content, compared separately",
        paper="none: made for this project, after nearest-neighbour routing",
        expert_data="private; example prompts are shared",
        generalization="in-domain prompts in new words, bare or with other instructions; abstains on others",
        reads_parts=True,
        cost="embeddings of the prompt's parts, two products with all examples",
        standing="recommended",
    )
    config_class: ClassVar[type[CalibrationOptions]] = TwoPartConfig
    adjusts_for_typicality: ClassVar[bool] = False  # its evidence includes the density of the examples

    # -- learning -------------------------------------------------------------------------------------------------

    @classmethod
    def learn(cls, config: TwoPartConfig, examples: Examples) -> Learned:
        """Learn cues, contents and the detector; keep the examples, sorted by expert, and their densities."""
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
        detector = np.array([0.0, 0.0, -30.0])  # without a cue nothing counts as an instruction
        tried = list(dict.fromkeys([*others, *chain(*_positives(cues).values())])) if cues and others else []
        row_of = dict(zip(tried, examples.embed(tried), strict=True)) if tried else {}
        if tried:
            positives = _cue_features(cues, owner, cue_rows, content_rows, row_of)
            asked = np.stack([row_of[text] for text in others])
            negatives = np.stack(
                [mean_of_largest(asked @ cue_rows.T, 1), _mean_of_largest_others(asked, content_rows)], axis=1
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
                # "crowd" is the name of the densities in stored artefacts
                "crowd": nearest_own(kept.bare_embeddings, kept.bare_embeddings, kept.owner, NEAREST),
                "tried": np.stack(list(row_of.values())) if tried else cue_rows[:0],
            },
            {"cues": cues, "contents": known, "tried": tried},
        )

    def prepare(self, learned: Learned) -> None:
        """Find the rows of each expert's cues and examples."""
        arrays = learned.arrays
        self._cues = np.asarray(arrays["cues"], np.float32)
        self._contents = np.asarray(arrays["contents"], np.float32)
        self._whole, self._bare = (np.asarray(arrays[name], np.float32) for name in ("whole", "bare"))
        self._detector = np.asarray(arrays["detector"], np.float64)
        self._density = np.asarray(arrays["crowd"], np.float64)
        num_experts = len(self.experts)
        self._cue_places = places_of(np.asarray(arrays["cue_owner"]), num_experts)
        self._places = places_of(np.asarray(arrays["owner"]), num_experts)
        if not len(self._whole) == len(self._bare) == len(self._density) == len(arrays["owner"]):
            raise ValueError("examples, bare examples and owners differ in number")
        if self._detector.shape != (3,) or len(self._cues) != len(arrays["cue_owner"]):
            raise ValueError("the detector or the cues have the wrong shape")
        self._embedded: dict[str, Vector] = {}
        for name in ("cues", "contents", "tried"):
            texts = (str(text) for text in learned.data[name])
            self._embedded.update(zip(texts, np.asarray(arrays[name], np.float32), strict=True))

    def embedded(self) -> Mapping[str, Vector]:
        """Return the cues, the contents, and the texts that the detector was fitted to."""
        return self._embedded if self.experts else {}

    # -- routing --------------------------------------------------------------------------------------------------

    def scores(self, prompts: Prompts) -> Scores:
        """Return the scores of `judge`."""
        return self.judge(prompts).scores

    def judge(self, prompts: Prompts) -> Judgement:
        """Return scores and evidence by the module's formulas."""
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
        apart = bare - self._density_of(chosen)
        said = gain[:, None] * np.nan_to_num(cue)
        return Judgement(0.5 * (bare + whole) + said, bare + TYPICALITY_WEIGHT * apart + said)

    def _density_of(self, rows: NDArray[np.int64]) -> Floats:
        """Return the mean density of the examples found, shape (p, E); 0 where there are none."""
        if not len(self._density):
            return np.zeros(rows.shape[:2])
        there = rows >= 0
        sums = np.where(there, self._density[rows], 0.0).sum(axis=2)
        return np.asarray(sums / np.maximum(there.sum(axis=2), 1), np.float64)

    def _instruction(self, rows: Matrix) -> Floats:
        """Return P(instruction) of segments, shape (p,)."""
        if not len(self._cues):
            return np.zeros(len(rows))
        features = np.stack(
            [mean_of_largest(rows @ self._cues.T, 1), mean_of_largest(rows @ self._contents.T, NEAREST)], axis=1
        )
        return sigmoids(features @ self._detector[:2] + self._detector[2])


def _hash_of(text: str) -> int:
    """Return a pseudo-random number that depends on the text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@lru_cache(maxsize=16384)
def _cues_and_segments(texts: tuple[str, ...]) -> tuple[list[str], frozenset[tuple[int, str]]]:
    """Return the instructions of one expert, sorted, and the first and last segments of its contents with their hashes.

    Cached for refits.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(set(parts_of(text)[:2]))
    counts.update(example.template for example in take_apart(texts) if example.template)
    needed = max(MIN_CUE_EXAMPLES, CUE_SHARE * len(texts))
    cues = sorted(cue for cue, num in counts.items() if num >= needed and len(_WORD.findall(cue)) >= MIN_CUE_WORDS)
    segments = {part for example in take_apart(texts) for part in parts_of(example.content)[:2]}
    return cues, frozenset((_hash_of(segment), segment) for segment in segments)


def _positives(cues: Iterable[str]) -> dict[int, list[str]]:
    """Return the texts that count as instructions: some of the cues, by number, each with pieces of it."""
    drawn = nsmallest(MAX_POSITIVES, ((_hash_of(cue), number, cue) for number, cue in enumerate(cues)))
    return {number: [cue, *_pieces(cue)] for _, number, cue in sorted(drawn, key=lambda each: each[1])}


def _cue_features(
    cues: Sequence[str],
    owner: NDArray[np.int32],
    cue_rows: Matrix,
    content_rows: Matrix,
    row_of: Mapping[str, Vector],
) -> Floats:
    """Return the detector's two features of cues and their pieces, as if their own words had never been seen."""
    chosen = _positives(cues)
    rows = np.stack([row_of[piece] for pieces in chosen.values() for piece in pieces])
    of_cue = np.repeat(list(chosen), [len(pieces) for pieces in chosen.values()])
    nearest = np.zeros(len(rows))
    for start in range(0, len(rows), BLOCK):  # a library of many experts has many cues
        cosines = rows[start : start + BLOCK] @ cue_rows.T
        for number in dict.fromkeys(of_cue[start : start + BLOCK].tolist()):
            cosines[np.ix_(of_cue[start : start + BLOCK] == number, _similar_cues(number, cues, owner))] = -np.inf
        nearest[start : start + BLOCK] = mean_of_largest(cosines, 1)
    nearest[np.isneginf(nearest)] = 0.0
    return np.stack([nearest, mean_of_largest(rows @ content_rows.T, NEAREST)], axis=1)


def _similar_cues(number: int, cues: Sequence[str], owner: NDArray[np.int32]) -> list[int]:
    """Return the cues of the same expert that share a pair of words with this one, including itself."""
    pairs = _pairs(cues[number])
    siblings = np.flatnonzero(owner == owner[number]).tolist()
    return [other for other in siblings if other == number or _pairs(cues[other]) & pairs]


@lru_cache(maxsize=16384)
def _pieces(text: str) -> tuple[str, ...]:
    rng = random.Random(_hash_of(text))  # noqa: S311 (no secret is drawn)
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


def _mean_of_largest_others(rows: Matrix, among: Matrix) -> Floats:
    """Return the mean of the largest cosines of each row to rows other than itself."""
    cosines = rows @ among.T
    cosines[cosines > 0.9999] = -1.0
    return mean_of_largest(cosines, min(NEAREST, max(1, cosines.shape[1] - 1)))
