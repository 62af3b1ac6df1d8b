"""A Gaussian mixture over embeddings: fitted by scikit-learn, stored as arrays, evaluated with numpy.

Shapes: n embeddings of d dimensions, C clusters, k axes.

    z          = (x - origin) · axes                                                       (n, k)
    cluster(x) = argmax_c log w_c + ½ Σ_i log p_ci - ½ Σ_i p_ci (z_i - μ_ci)²              p = 1 / variance, (C, k)

The axes are the k directions of largest variance, along which the embeddings of all experts are uncorrelated. So each
cluster has a variance for each axis and no covariances, which cannot be estimated from an expert's few examples in all
dimensions. 1e-3 is added to the variances, a few per cent of the variance of unit vectors along such axes. On the
validation prompts of public task data (11 experts, 32 axes) 90 % fell into a cluster of their expert's after fitting to
32 examples each and 92 % after 100. Full covariances did as well there, and 5 to 7 points better on rephrased prompts
(64 and 66 % here), but take several times as long to fit: a minute instead of ten seconds for 100 experts. Without the
added variance they fell to 47 % of the validation prompts with 32 examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.mixture import GaussianMixture

from routers.base import Floats, Matrix

RIDGE = 1e-3
MAX_ROUNDS = 500
_FLAT = 1e-9
"""Variances below this are rounding errors."""


def fit_mixture(rows: Matrix, num_clusters: int, num_axes: int) -> dict[str, Floats]:
    """Fit a mixture and return its arrays, float64; the result is deterministic.

    Args:
        rows: Embeddings, shape (n, d), at least one.
        num_clusters: Number of clusters, C; fewer if there are fewer distinct rows.
        num_axes: Number of axes, k; fewer if the rows differ in fewer directions.
    """
    x = np.asarray(rows, np.float64)
    origin = x.mean(axis=0)
    variances, directions = np.linalg.eigh((x - origin).T @ (x - origin) / len(x))
    axes = directions[:, variances > _FLAT][:, -num_axes:]  # eigh gives the smallest first
    z = (x - origin) @ axes
    num_distinct = len(np.unique(z.round(6), axis=0)) if axes.shape[1] else 1
    num_clusters = min(num_clusters, num_distinct)
    weights, centres, precisions = np.ones(1), np.zeros((1, axes.shape[1])), np.ones((1, axes.shape[1]))
    if num_clusters > 1:
        model = GaussianMixture(
            num_clusters, covariance_type="diag", reg_covar=RIDGE, max_iter=MAX_ROUNDS, random_state=0
        ).fit(z)
        weights, centres, precisions = model.weights_, model.means_, model.precisions_
    return {"origin": origin, "axes": axes, "weights": weights, "centres": centres, "precisions": precisions}


class Mixture:
    """A fitted mixture; raises KeyError or ValueError for arrays that `fit_mixture` did not return."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._origin, self._axes, weights, centres, self._precisions = (
            np.asarray(arrays[name], np.float64) for name in ("origin", "axes", "weights", "centres", "precisions")
        )
        (dim, num_axes), (num_clusters,) = self._axes.shape, weights.shape
        shapes = {centres.shape, self._precisions.shape}
        if self._origin.shape != (dim,) or shapes != {(num_clusters, num_axes)}:
            raise ValueError("the arrays of the mixture do not match")
        self._pull = centres * self._precisions
        self._offsets = np.log(weights) + 0.5 * (np.log(self._precisions) - centres * self._pull).sum(axis=1)

    def clusters(self, rows: Matrix) -> NDArray[np.int64]:
        """Return the most probable cluster of each row, shape (n,)."""
        z = (np.asarray(rows, np.float64) - self._origin) @ self._axes
        likely = self._offsets + z @ self._pull.T - 0.5 * np.square(z) @ self._precisions.T
        return np.asarray(np.argmax(likely, axis=1), np.int64)
