"""Calibration by cross-validation: a method learns from four fifths of each expert's examples and scores the rest.

Each held-out example counts twice. *Known* is the evidence for the winner among all experts, *unknown* the evidence for
the winner among the other experts, as if the example's own expert did not exist. Examples are scored without their
template (`routers.text.templates`).

Shapes: p held-out examples, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from routers.base import Floats, Progress
from routers.families.calibration import Calibration
from routers.families.held_out import HeldOut, calibrate_on
from routers.families.options import CalibrationOptions
from routers.families.typicality import expected_of, expected_scores, typicality_adjusted
from routers.library.examples import Examples
from routers.maths.even_sample import evenly_spaced

NUM_FOLDS = 5

BLOCK = 128
"""Number of examples that are scored at once, to bound the memory that a large library takes."""


class FoldScores(NamedTuple):
    """Scores of held-out examples for their own expert and for the best of the others, all of shape (p,).

    Attributes:
        owner: Number of the example's own expert.
        other: Number of the best other expert.
        own_score: Score of the own expert; -inf if it has none.
        other_score: Score of the best other expert; -inf if there is none.
        second_score: Score of the second best other expert; -inf if there is none.
        own_evidence: Evidence for the own expert.
        other_evidence: Evidence for the best other expert.
        has_margin: Whether scores are evidence, so that the margin between the two best experts means something.
    """

    owner: NDArray[np.int32]
    other: NDArray[np.int64]
    own_score: Floats
    other_score: Floats
    second_score: Floats
    own_evidence: Floats
    other_evidence: Floats
    has_margin: bool

    def held_out(self, expected: Floats | None) -> HeldOut:
        """Return the winners; with `expected`, shape (E,), their evidence is adjusted for typicality."""
        own_evidence, other_evidence = self.own_evidence, self.other_evidence
        if expected is not None:
            own_evidence = typicality_adjusted(own_evidence, expected[self.owner])
            other_evidence = typicality_adjusted(other_evidence, expected[self.other])
        is_known = np.isfinite(self.own_score)
        is_right = self.own_score > self.other_score
        with np.errstate(invalid="ignore"):  # -inf minus -inf, where there is no second expert
            ahead = self.own_score - self.other_score
            behind = self.other_score - np.maximum(self.own_score, self.second_score)
            margins = np.where(is_right, ahead, behind)
        return HeldOut(
            evidence=np.where(is_right, own_evidence, other_evidence)[is_known],
            is_right=is_right[is_known],
            first=np.where(is_right, self.owner, self.other)[is_known],
            margins=np.where(np.isfinite(margins), margins, 1.0)[is_known],
            unknown=other_evidence[np.isfinite(self.other_score)],
        )


Scorer = Callable[[Examples], FoldScores]
"""Scores examples that it has not learned from."""


def cross_validate(
    examples: Examples, max_examples: int, learn: Callable[[Examples], Scorer], progress: Progress
) -> Iterator[FoldScores]:
    """Yield the scores of each fold's examples, a block at a time, after learning from the other folds.

    Args:
        examples: The library's examples.
        max_examples: Number of examples that are scored, at most; all others are only learned from.
        learn: Learns from some of the examples.
        progress: Called after each fold.
    """
    fold_of = _folds(examples.owner)
    chosen = evenly_spaced(len(examples.texts), max_examples)
    for fold in range(NUM_FOLDS):
        progress(fold, NUM_FOLDS)
        held_out = chosen[fold_of[chosen] == fold]
        rest = examples.take(np.flatnonzero(fold_of != fold))
        if not len(held_out) or not rest.texts:
            continue
        score = learn(rest)
        for block in np.array_split(held_out, -(-len(held_out) // BLOCK)):
            yield score(examples.take(block))
    progress(NUM_FOLDS, NUM_FOLDS)


def calibrate_on_folds(
    blocks: Sequence[FoldScores], experts: Sequence[str], options: CalibrationOptions, *, adjusts_for_typicality: bool
) -> Calibration:
    """Calibrate on cross-validated scores; `experts` are the ids of all experts, by number."""
    expected: dict[str, float] = {}
    of_expert = None
    if adjusts_for_typicality:
        if blocks:
            owner = np.concatenate([block.owner for block in blocks])
            own_evidence = np.concatenate([block.own_evidence for block in blocks])
            expected = expected_scores(owner, own_evidence, experts)
        of_expert = expected_of(expected, experts)
    held_out = [block.held_out(of_expert) for block in blocks]
    has_margin = all(block.has_margin for block in blocks)
    return replace(calibrate_on(held_out, experts, options, has_margin=has_margin), expected_scores=expected)


def _folds(owner: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the fold of each example, shape (n,): the examples of an expert are dealt to the folds in turn."""
    place = np.zeros(len(owner), np.int64)
    seen: dict[int, int] = {}
    for row, expert in enumerate(owner.tolist()):
        place[row] = seen.get(expert, 0)
        seen[expert] = seen.get(expert, 0) + 1
    return place % NUM_FOLDS
