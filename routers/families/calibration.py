"""From scores on a library's own examples to an abstention threshold and a confidence.

A router scores its own examples twice. *Known*: the example is held out, its expert stays (`known`; `right` says
whether that expert still came first). *Unknown*: the whole expert is held out, so that every answer is wrong
(`unknown`). These examples have the right kind of text and no expert, so they are the best substitute for out-of-scope
prompts that a library contains. No other data is used. Any router whose evidence grows with its score can use this.

The threshold t and slope b of P(known | s) = σ(b (s - t)) are a weighted logistic regression:

* the two sets weigh share : 1 - share, where share is the assumed share of the traffic that has an expert;
* twelve pseudo-scores stabilise the fit for small libraries. They are placed relative to the median u of `unknown`: six
  around u and six around u + 0.4 (1 - u), each with weight three. With 30 examples they hardly matter;
* t is raised until two thirds of `unknown` are below it, unless more than a tenth of the known examples would then be
  below it too (near-identical experts answer for each other).

P(right | margin) = σ(c · margin), where margin is the distance to the second expert: one half at a tie, and c is fitted
on the known set in the same way. Confidence is the product, so it grows with the score and with the margin.
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
_MAX_CHANGED_SHARE = 0.02
_MIN_UNKNOWN_BELOW, _MAX_KNOWN_BELOW = 2 / 3, 0.1


@dataclass(frozen=True, slots=True)
class LeftOut:
    """How a policy decides for its own examples, each held out.

    Traffic that resembles the examples is decided in the same way, so a difference is drift.

    Attributes:
        abstained: Share of the examples for which no expert is chosen, in [0, 1].
        confidence: Mean confidence by first choice: an expert's id, or ``base`` for no expert.
    """

    abstained: float
    confidence: Mapping[str, float]

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> Self | None:
        """Read an artefact's data; None if the artefact is older than this entry or of another method."""
        kept = data.get("left_out")
        if not isinstance(kept, dict):
            return None
        return cls(float(kept["abstained"]), {str(e): float(mean) for e, mean in dict(kept["confidence"]).items()})

    def dump(self) -> dict[str, Any]:
        """Return JSON values for an artefact."""
        return {"abstained": self.abstained, "confidence": dict(self.confidence)}


@dataclass(frozen=True, slots=True)
class Calibration:
    """The threshold and confidence of a router, and the library that they were fitted to.

    Attributes:
        threshold: t, the evidence from which an expert is chosen.
        slope: b, how fast confidence grows with evidence.
        margin_slope: c, how fast confidence grows with the margin.
        fitted_to: Fingerprints of the experts and their examples (`fingerprints_of`).
        left_out: How the router decides for the examples; None if none was held out.
        expected_scores: Expected score of each expert for its own prompts, by id (`routers.families.typicality`);
            empty for methods that do not adjust for typicality.
    """

    threshold: float
    slope: float
    margin_slope: float
    fitted_to: frozenset[str] = frozenset()
    left_out: LeftOut | None = None
    expected_scores: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> Self:
        """Read what `dump` returned; raises KeyError, TypeError or ValueError."""
        threshold, slope, margin_slope = (float(number) for number in data["calibration"])
        fingerprints = frozenset(map(str, data.get("calibrated_to", ())))
        expected = {str(expert): float(score) for expert, score in dict(data.get("usual", {})).items()}
        return cls(threshold, slope, margin_slope, fingerprints, LeftOut.load(data), expected)

    def dump(self) -> dict[str, Any]:
        """Return JSON values for an artefact."""
        return {
            "calibration": [self.threshold, self.slope, self.margin_slope],
            "calibrated_to": sorted(self.fitted_to),
            "left_out": self.left_out.dump() if self.left_out else None,
            "usual": dict(self.expected_scores),  # the name of this entry in stored artefacts
        }

    def with_left_out(
        self, chosen: Sequence[str], known: Floats, margins: Floats | None, threshold: float | None
    ) -> Self:
        """Return a copy that says how the router decides for the held-out examples.

        Args:
            chosen: Id of the first choice for each of the n examples.
            known: Evidence for the first choice, shape (n,).
            margins: Margin of the first choice, shape (n,); None if the router's confidence ignores margins.
            threshold: Threshold that the user set; None for the calibrated one.
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

    def holds_for(self, fingerprints: frozenset[str]) -> bool:
        """Return whether the library has changed so little since the calibration that it can be kept.

        Calibrating is the most expensive part of a fit, and one expert among a thousand hardly changes the result.
        """
        return len(self.fitted_to ^ fingerprints) <= _MAX_CHANGED_SHARE * len(fingerprints)

    def confidence(self, score: float, margin: float | None) -> float:
        """Return a confidence in [0, 1] that never decreases in either argument.

        Args:
            score: Evidence for the first choice.
            margin: Distance to the second expert; None if there is none.
        """
        known = sigmoid(self.slope * (score - self.threshold))
        return known if margin is None else known * sigmoid(self.margin_slope * max(margin, 0.0))


def calibrate(known: Floats, right: NDArray[np.bool_], margins: Floats, unknown: Floats, share: float) -> Calibration:
    """Fit a calibration.

    Args:
        known: Evidence for the first choice of each held-out example, shape (n,); may be empty.
        right: Whether the example's own expert came first, shape (n,).
        margins: Score of the first choice minus score of the second, shape (n,).
        unknown: Evidence for the first choice of examples whose expert was held out, shape (m,); may be empty.
        share: Assumed share of the traffic that has an expert, in (0, 1).
    """
    centre = float(np.median(unknown)) if len(unknown) else _TYPICAL_UNKNOWN
    high = centre + 0.4 * (1.0 - centre)
    scores = np.concatenate([known, unknown, high + _PSEUDO_KNOWN, centre + _PSEUDO_UNKNOWN])
    labels = np.concatenate([right, np.zeros(len(unknown)), np.ones(6), np.zeros(6)]).astype(np.float64)
    odds = [share, 1 - share, share * _PSEUDO_WEIGHT, (1 - share) * _PSEUDO_WEIGHT]
    weights = np.repeat(odds, [len(known), len(unknown), 6, 6]) * 2
    slope, offset = fit_logistic(np.stack([scores, np.ones_like(scores)], axis=1), labels, weights)
    threshold = -offset / slope if slope > 1e-6 else centre
    # A threshold that most out-of-scope prompts pass is useless, so raise it.
    floor = float(np.quantile(unknown, _MIN_UNKNOWN_BELOW)) if len(unknown) else centre
    # With near-identical experts `unknown` is as high as `known`; the raised threshold would then reject everything.
    floor = min(floor, float(np.quantile(known, _MAX_KNOWN_BELOW))) if len(known) else centre
    return Calibration(
        threshold=float(np.clip(max(threshold, floor), -1.0, 1.0)),
        slope=float(np.clip(slope, _MIN_SLOPE, _MAX_SLOPE)),
        margin_slope=_margin_slope(right, margins),
    )


def fingerprints_of(experts: Iterable[LibraryExpert]) -> frozenset[str]:
    """Return one text for each expert that changes with its id and with its examples."""
    fingerprints = set()
    for expert in experts:
        digest = hashlib.sha256(repr(expert.examples).encode("utf-8", "surrogatepass")).hexdigest()
        fingerprints.add(f"{expert.expert_id} {digest[:16]}")
    return frozenset(fingerprints)


def _margin_slope(right: NDArray[np.bool_], margins: Floats) -> float:
    """Fit c of σ(c · margin); three pseudo-observations keep it near the default for few examples."""
    prior = np.array([0.05, 0.1, 0.15])
    probability = sigmoids(_DEFAULT_MARGIN_SLOPE * prior)
    x = np.concatenate([margins, prior])[:, None]
    labels = np.concatenate([right.astype(np.float64), probability])
    (slope,) = fit_logistic(x, labels, np.ones(len(labels)), ridge=1e-4)
    return float(np.clip(slope, 0.0, 2 * _MAX_SLOPE))


def fit_logistic(x: Floats, labels: Floats, weights: Floats, ridge: float = _RIDGE) -> Floats:
    """Fit a ridge logistic regression by Newton's method with step halving.

    x has shape (n, p), labels in [0, 1] and weights shape (n,), the result shape (p,).
    """
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
