"""Multinomial logistic regression on soft labels: a linear softmax at the optimum of its cross-entropy.

    P(m | x) = softmax_K(W x + b)_m        minimise  mean_i Σ_m t_im · -log P(m | x_i) + ridge/2 · ‖W‖²

Shapes: x (n, d), t (n, M) with rows that sum to one, W (M, d), b (M,). K is the set of known classes of a row. The
softmax covers only these, so a row says nothing about the others. The loss is the mean Kullback-Leibler divergence of P
from t, up to t's entropy, and convex. L-BFGS finds its minimum from zeros, deterministically. b is not penalised.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from routers.base import Floats


def fit_softmax(
    x: Floats, targets: Floats, ridge: float, known: NDArray[np.bool_] | None = None
) -> tuple[Floats, Floats]:
    """Fit W and b; `known` (n, M) has at least one class in each row, and targets outside it are zero."""
    num_rows, dim = x.shape
    num_classes = targets.shape[1]
    mask = np.ones(targets.shape, dtype=bool) if known is None else known
    design = np.hstack([x, np.ones((num_rows, 1))])

    def loss(flat: Floats) -> tuple[float, Floats]:
        both = flat.reshape(num_classes, dim + 1)
        log_p = log_softmax(np.where(mask, design @ both.T, -np.inf))
        gradient = (np.exp(log_p) - targets).T @ design / num_rows
        gradient[:, :-1] += ridge * both[:, :-1]
        cross_entropy = -float((targets * np.where(mask, log_p, 0.0)).sum()) / num_rows
        return cross_entropy + ridge / 2 * float((both[:, :-1] ** 2).sum()), gradient.ravel()

    start = np.zeros(num_classes * (dim + 1))
    options = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-14, "gtol": 1e-7}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x.reshape(num_classes, dim + 1)
    return found[:, :-1], found[:, -1]


def log_softmax(logits: Floats) -> Floats:
    """Return the log-softmax over the last axis; -inf stays -inf, and each row needs a finite value."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), np.float64)
