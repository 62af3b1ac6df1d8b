"""Estimators of RouteLLM (Ong et al., 2024): how probably a strong model beats a weak one on a prompt.

Each learns from preference rows, prompts with an outcome for the strong model: 1 a win, 1/2 a tie, 0 a loss.
`routers.methods.route_llm` makes the decision. Shapes: x (n, d) embeddings of the prompts, y (n,) outcomes, q (d,) a
prompt.

``mf``, matrix factorisation. Models have embeddings p, here two of them, the strong s and the weak w:

    P(strong wins | q) = σ(c · ((p̂_s - p̂_w) ⊙ W q))          p̂ of unit length; W (dim, d), c (dim,), no bias

As in the authors' code, it is trained by Adam on rows without a tie, with noise on the embeddings. For two models this
is a plane through the origin, v · q with v = Wᵀ(c ⊙ (p̂_s - p̂_w)), and only v is kept. Small tables get more epochs, so
that at least `MIN_STEPS` steps are taken.

``sw_ranking``, similarity-weighted ranking: a Bradley-Terry model fitted to all rows for each prompt, with weights

    ω_i = 10 · 10^(cos(q, x_i) / max_j cos(q, x_j)),    where a tie counts as half a win and half a loss

Between two models its maximum likelihood has a closed form, P = Σ ω_i y_i / Σ ω_i. The authors first sort the models of
Chatbot Arena into ten tiers; here there are two models from the start. If no row has a positive cosine with the prompt,
the weights would be inverted, so all rows weigh the same.

``classifier``: P = 1 - P(tie | q) - P(weak wins | q) by a linear softmax on the embedding, where the authors fine-tune
BERT. ``random``: a number that depends only on the text.

An estimator without rows to learn from returns one half.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from routers.base import Floats
from routers.maths.sigmoid import sigmoids
from routers.maths.softmax_regression import fit_softmax, log_softmax

Arrays = Mapping[str, NDArray[Any]]
Estimator = Literal["mf", "sw_ranking", "classifier", "random"]

LEARNING_RATE, WEIGHT_DECAY, BATCH = 3e-4, 1e-5, 64
MIN_STEPS = 2000
_DECAY, _SQUARE_DECAY, _TINY = 0.9, 0.999, 1e-8


def learn_win_rates(
    estimator: Estimator, x: Floats, y: Floats, *, dim: int, epochs: int, noise: float, ridge: float, seed: int
) -> dict[str, NDArray[Any]]:
    """Learn from preference rows; returns the arrays that `win_rates` needs."""
    if estimator == "sw_ranking":
        return {"embeddings": x.astype(np.float32), "outcomes": y}
    if estimator == "classifier":
        outcomes = np.unique(y)
        weights, bias = np.zeros((0, x.shape[1])), np.zeros(0)
        if len(outcomes):
            weights, bias = fit_softmax(x, (y[:, None] == outcomes).astype(np.float64), ridge)
        return {"outcomes": outcomes, "weights": weights, "bias": bias}
    if estimator == "mf":
        return {"direction": factorise(x, y, dim=dim, epochs=epochs, noise=noise, seed=seed)}
    return {}


def win_rates(estimator: Estimator, arrays: Arrays, texts: Sequence[str], x: Floats, seed: int = 0) -> Floats:
    """Return P(strong wins), shape (p,), for prompts given as texts and as embeddings (p, d)."""
    if estimator == "mf":
        return sigmoids(x @ arrays["direction"])
    if estimator == "sw_ranking":
        return _similarity_weighted(x, arrays["embeddings"], arrays["outcomes"])
    if estimator == "classifier":
        if not len(arrays["outcomes"]):
            return np.full(len(x), 0.5)
        probability = np.exp(log_softmax(x @ arrays["weights"].T + arrays["bias"]))
        return np.asarray(probability[:, arrays["outcomes"] == 1.0].sum(axis=1), np.float64)
    return np.array([_random_rate(text, seed) for text in texts], np.float64)


def factorise(x: Floats, y: Floats, *, dim: int, epochs: int, noise: float, seed: int) -> Floats:
    """Fit v by matrix factorisation, shape (d,); zeros if every row is a tie."""
    x, sign = x[y != 0.5], np.where(y[y != 0.5] > 0.5, 1.0, -1.0)
    num_rows, text_dim = x.shape
    if not num_rows:
        return np.zeros(text_dim)
    rng = np.random.default_rng(seed)
    start = (  # the initialisation of torch's Embedding and Linear
        rng.normal(size=(2, dim)),
        rng.uniform(-1, 1, size=(dim, text_dim)) / np.sqrt(text_dim),
        rng.uniform(-1, 1, size=dim) / np.sqrt(dim),
    )
    flat = np.concatenate([value.ravel() for value in start])
    first, second, work = np.zeros_like(flat), np.zeros_like(flat), np.empty_like(flat)
    parameters = _views(flat, dim, text_dim)
    per_epoch = -(-num_rows // BATCH)
    order = np.empty(0, np.int64)
    for step in range(1, max(epochs * per_epoch, MIN_STEPS) + 1):
        if not len(order):
            order = rng.permutation(num_rows)
        batch, order = order[:BATCH], order[BATCH:]
        noisy = x[batch] + noise * rng.normal(size=(len(batch), text_dim))
        slope = np.concatenate([part.ravel() for part in gradients(parameters, noisy, sign[batch])])
        slope += np.multiply(
            flat, WEIGHT_DECAY, out=work
        )  # Adam, in place: allocating arrays would take longer than the sums
        first *= _DECAY
        first += np.multiply(slope, 1 - _DECAY, out=work)
        second *= _SQUARE_DECAY
        second += np.multiply(np.square(slope, out=work), 1 - _SQUARE_DECAY, out=work)
        np.multiply(np.sqrt(second, out=work), (1 - _SQUARE_DECAY**step) ** -0.5, out=work)
        np.divide(first, np.add(work, _TINY, out=work), out=work)
        flat -= np.multiply(work, LEARNING_RATE / (1 - _DECAY**step), out=work)
    u = parameters.classifier * _contrast(parameters.models)[0]
    return np.asarray(parameters.projection.T @ u, np.float64)


class Factors(NamedTuple):
    """The models' embeddings (strong, weak), shape (2, dim), W, shape (dim, d), and c, shape (dim,)."""

    models: Floats
    projection: Floats
    classifier: Floats


def _views(flat: Floats, dim: int, text_dim: int) -> Factors:
    models, projection, classifier = np.split(flat, [2 * dim, 2 * dim + dim * text_dim])
    return Factors(models.reshape(2, dim), projection.reshape(dim, text_dim), classifier)


def gradients(factors: Factors, x: Floats, sign: Floats) -> Factors:
    """Return the gradients of the mean of -log σ(sign · c · ((p̂_s - p̂_w) ⊙ W x)).

    Every row has the same two models, so the logit is x · v with v = Wᵀu and u = c ⊙ (p̂_s - p̂_w). The gradient by W is
    the outer product of u and dv.
    """
    contrast, unit, length = _contrast(factors.models)
    u = factors.classifier * contrast
    by_logit = -sign * sigmoids(-sign * (x @ (factors.projection.T @ u))) / len(x)
    by_direction = x.T @ by_logit
    by_u = factors.projection @ by_direction
    by_unit = np.stack([by_u * factors.classifier, -by_u * factors.classifier])
    along = (by_unit * unit).sum(axis=1, keepdims=True) * unit
    return Factors((by_unit - along) / length, np.asarray(np.outer(u, by_direction), np.float64), by_u * contrast)


def _contrast(models: Floats) -> tuple[Floats, Floats, Floats]:
    """Return p̂_s - p̂_w, shape (dim,), both p̂, (2, dim), and the lengths of both p, (2, 1)."""
    length = np.linalg.norm(models, axis=1, keepdims=True)
    unit = models / length
    return unit[0] - unit[1], unit, length


def _similarity_weighted(x: Floats, embeddings: NDArray[np.float32], outcomes: Floats) -> Floats:
    if not len(outcomes):
        return np.full(len(x), 0.5)
    cosines = np.asarray(x, np.float64) @ embeddings.T.astype(np.float64)
    nearest = cosines.max(axis=1, keepdims=True)
    usable = nearest > 0
    weights = 10 * 10.0 ** np.where(usable, cosines / np.where(usable, nearest, 1.0), 0.0)
    return np.asarray(weights @ outcomes / weights.sum(axis=1), np.float64)


def _random_rate(text: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}\0{text}".encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:6], "big") / 2.0**48
