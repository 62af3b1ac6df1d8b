"""From scores on a library's own examples to an abstention threshold and a confidence.

A router scores its own examples twice. *Known*: the example is left out, its expert stays (`known`, with `right`
telling whether that expert still came first). *Unknown*: its whole expert is left out, so every answer is wrong
(`unknown`): texts of the right kind whose expert is missing, the best stand-in for out-of-scope prompts that a library
holds. Nothing else is looked at. Used by `knn`; fits any router whose score grows with evidence.

The threshold t and slope b of P(known | s) = σ(b (s - t)) are a weighted logistic regression:

* the two sets weigh share : 1 - share, share being the part of the traffic that is assumed to have an expert;
* few examples say little, so twelve pseudo-scores are added, placed relative to the median u of `unknown`: six around
  u and six around u + 0.4 (1 - u), each weighing three. With 30 examples they hardly matter;
* t is raised so that two thirds of `unknown` stay below (a bar that more of the strangers pass is none), unless more
  than a tenth of the known examples would then fall below it (twin experts speak for each other).

P(right | margin) = σ(c · margin), margin being the distance to the second expert: one half at a tie, c fitted on the
known set likewise. Confidence is the product: it grows with the score and with the margin.

What the policy decided for the left-out examples is kept too (`LeftOut`): traffic that is like the examples is decided
like them, so a difference is drift.

Calibrating costs more than all the rest of a fit, and one expert among a thousand hardly moves it. So a policy that
follows its library keeps its calibration until a fiftieth of the experts have changed since (`Calibration.holds_for`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from routers.base import BASE, Floats, LibraryExpert
from routers.maths.sigmoid import sigmoid, sigmoids

_PSEUDO_KNOWN = np.array([-0.15, -0.05, 0.0, 0.05, 0.10, 0.15])
_PSEUDO_UNKNOWN = np.array([-0.10, -0.05, 0.0, 0.03, 0.07, 0.12])
_PSEUDO_WEIGHT = 3.0
_TYPICAL_UNKNOWN = 0.25
_RIDGE = 0.002
_MIN_SLOPE, _MAX_SLOPE = 5.0, 60.0
_DEFAULT_MARGIN_SLOPE = 20.0
_MOST_CHANGED = 0.02
_LEFT_OUT, _LOST = 2 / 3, 0.1

CROWD_WEIGHT = 0.5
"""How much of what a score is above the one that is usual for the expert is added to it as evidence."""

IN_LIBRARY_SHARE = 0.93
"""Assumed part of the prompts that have an expert, where nobody says otherwise.

On public tasks (docs/measurements/policies.md) about four in five strangers are then left out.
"""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """How a policy decided for its own examples, each left out.

    Attributes:
        abstained: Share for which it chose no expert, in [0, 1].
        confidence: Mean confidence by first choice: an expert's id, or ``base`` for no expert.
    """

    abstained: float
    confidence: Mapping[str, float]

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> Self | None:
        """From an artefact's data; None for one that was made before this was kept, or by another method."""
        kept = data.get("left_out")
        if not isinstance(kept, dict):
            return None
        return cls(float(kept["abstained"]), {str(e): float(mean) for e, mean in dict(kept["confidence"]).items()})

    def dump(self) -> dict[str, Any]:
        """JSON values for an artefact."""
        return {"abstained": self.abstained, "confidence": dict(self.confidence)}


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was fitted, and to whom.

    Attributes:
        threshold, slope, margin_slope: See the module's docstring.
        fitted_to: Marks of the experts with their examples (`marks_of`).
        left_out: How it decides for them; None if nothing was left out.
        usual: Score that is usual for an expert's own prompts, by id; empty for methods that do not ask.
    """

    threshold: float
    slope: float
    margin_slope: float
    fitted_to: frozenset[str] = frozenset()
    left_out: LeftOut | None = None
    usual: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> Self:
        """From `dump`; raises KeyError, TypeError or ValueError."""
        threshold, slope, margin_slope = (float(number) for number in data["calibration"])
        marks = frozenset(map(str, data.get("calibrated_to", ())))
        usual = {str(expert): float(score) for expert, score in dict(data.get("usual", {})).items()}
        return cls(threshold, slope, margin_slope, marks, LeftOut.load(data), usual)

    def dump(self) -> dict[str, Any]:
        """JSON values for an artefact."""
        return {
            "calibration": [self.threshold, self.slope, self.margin_slope],
            "calibrated_to": sorted(self.fitted_to),
            "left_out": self.left_out.dump() if self.left_out else None,
            "usual": dict(self.usual),
        }

    def to(self, marks: frozenset[str]) -> Self:
        """The same, saying to whom it was fitted."""
        return replace(self, fitted_to=marks)

    def with_left_out(
        self, chosen: Sequence[str], known: Floats, margins: Floats | None, threshold: float | None
    ) -> Self:
        """The same, with how it decides for the left-out examples.

        Args:
            chosen: The expert that came first for each, n of them.
            known, margins: As for `calibrate`, shape (n,); None if the method's confidence knows no margin.
            threshold: The one that the policy uses; None for the calibrated one.
        """
        if not len(known):
            return self
        confidence = sigmoids(self.slope * (known - self.threshold))
        if margins is not None:
            confidence = confidence * sigmoids(self.margin_slope * np.maximum(margins, 0.0))
        is_below = known < (self.threshold if threshold is None else threshold)
        found: dict[str, list[float]] = {}
        for expert, below, value in zip(chosen, is_below.tolist(), confidence.tolist(), strict=True):
            found.setdefault(BASE if below else expert, []).append(value)
        means = {expert: sum(values) / len(values) for expert, values in sorted(found.items())}
        return replace(self, left_out=LeftOut(float(is_below.mean()), means))

    def holds_for(self, marks: frozenset[str]) -> bool:
        """Whether the library has changed so little since that this may be kept."""
        return len(self.fitted_to ^ marks) <= _MOST_CHANGED * len(marks)

    def confidence(self, score: float, margin: float | None) -> float:
        """In [0, 1], never decreasing in either; `margin` is None if there is no second expert."""
        known = sigmoid(self.slope * (score - self.threshold))
        return known if margin is None else known * sigmoid(self.margin_slope * max(margin, 0.0))


def calibrate(known: Floats, right: NDArray[np.bool_], margins: Floats, unknown: Floats, share: float) -> Calibration:
    """Fit a calibration.

    Args:
        known: Top score of each left-out example, shape (n,); may be empty.
        right: Whether its own expert came first, shape (n,).
        margins: Top minus second score of the same, shape (n,).
        unknown: Top score of examples whose expert was left out, shape (m,); may be empty.
        share: Assumed part of the traffic that has an expert, in (0, 1).
    """
    centre = float(np.median(unknown)) if len(unknown) else _TYPICAL_UNKNOWN
    high = centre + 0.4 * (1.0 - centre)
    scores = np.concatenate([known, unknown, high + _PSEUDO_KNOWN, centre + _PSEUDO_UNKNOWN])
    labels = np.concatenate([right, np.zeros(len(unknown)), np.ones(6), np.zeros(6)]).astype(np.float64)
    odds = [share, 1 - share, share * _PSEUDO_WEIGHT, (1 - share) * _PSEUDO_WEIGHT]
    weights = np.repeat(odds, [len(known), len(unknown), 6, 6]) * 2
    slope, offset = _logistic(np.stack([scores, np.ones_like(scores)], axis=1), labels, weights)
    threshold = -offset / slope if slope > 1e-6 else centre
    floor = float(np.quantile(unknown, _LEFT_OUT)) if len(unknown) else centre
    floor = min(floor, float(np.quantile(known, _LOST))) if len(known) else centre
    return Calibration(
        threshold=float(np.clip(max(threshold, floor), -1.0, 1.0)),
        slope=float(np.clip(slope, _MIN_SLOPE, _MAX_SLOPE)),
        margin_slope=_margin_slope(right, margins),
    )


def marks_of(experts: Iterable[LibraryExpert]) -> frozenset[str]:
    """What tells experts from each other, and each from itself with other examples."""
    marks = set()
    for expert in experts:
        digest = hashlib.sha256(repr(expert.examples).encode("utf-8", "surrogatepass")).hexdigest()
        marks.add(f"{expert.expert_id} {digest[:16]}")
    return frozenset(marks)


def still_holding(previous: object, kind: type, config: object, marks: frozenset[str]) -> Calibration | None:
    """The calibration of the router in service, if that is of this kind and options, and the library hardly changed."""
    if not isinstance(previous, kind):
        return None
    calibration: Calibration = previous.calibration  # type: ignore[attr-defined]
    same = previous.config == config  # type: ignore[attr-defined]
    return calibration if same and calibration.holds_for(marks) else None


def _margin_slope(right: NDArray[np.bool_], margins: Floats) -> float:
    """c of σ(c · margin); three pseudo-observations hold it near the default when there are few examples."""
    prior = np.array([0.05, 0.1, 0.15])
    probability = sigmoids(_DEFAULT_MARGIN_SLOPE * prior)
    x = np.concatenate([margins, prior])[:, None]
    labels = np.concatenate([right.astype(np.float64), probability])
    (slope,) = _logistic(x, labels, np.ones(len(labels)), ridge=1e-4)
    return float(np.clip(slope, 0.0, 2 * _MAX_SLOPE))


def _logistic(x: Floats, labels: Floats, weights: Floats, ridge: float = _RIDGE) -> Floats:
    """Ridge logistic regression by Newton's method with halving; x (n, p), labels in [0, 1] (n,), result (p,)."""
    beta = np.zeros(x.shape[1])
    loss = _loss(beta, x, labels, weights, ridge)
    for _ in range(50):
        p = sigmoids(x @ beta)
        gradient = x.T @ (weights * (p - labels)) + ridge * beta
        hessian = (x * (weights * p * (1 - p))[:, None]).T @ x + ridge * np.eye(len(beta))
        step = np.linalg.solve(hessian, gradient)
        while (new := _loss(beta - step, x, labels, weights, ridge)) > loss and np.abs(step).max() > 1e-9:
            step = step / 2
        beta, improved, loss = beta - step, loss - new, new
        if improved < 1e-10:
            break
    return beta


def _loss(beta: Floats, x: Floats, labels: Floats, weights: Floats, ridge: float) -> float:
    z = x @ beta
    return float(weights @ (np.logaddexp(0, z) - labels * z) + ridge / 2 * beta @ beta)
