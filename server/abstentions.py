"""What nobody covers: prompts for which no expert was chosen, in groups of alike ones.

The embeddings that the decision log keeps are grouped by k-means on the sphere (unit rows, so that squared distance is
2 − 2·cosine). The number of groups is the one from 2 to `MAX_GROUPS` with the best mean silhouette; if even that is
below `MIN_SILHOUETTE`, the prompts are one group. Shapes: n prompts, d dimensions. Cost: some seconds for `MAX_ROWS`
prompts of 384 dimensions, in a worker thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapters_registry.decisions import DecisionRecord
from routers.base import Matrix, RouteQuery, Vector
from server.policies import LivePolicy

MAX_ROWS = 5000
MAX_GROUPS = 10
MIN_SILHOUETTE = 0.05
MIN_PER_GROUP = 3
SILHOUETTE_SAMPLE = 1000
MAX_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Nearest:
    """The expert that came nearest to a group's middle, with the router's own score for it."""

    expert: str
    score: float


@dataclass(frozen=True, slots=True)
class Group:
    """Prompts that are alike.

    Attributes:
        size: How many.
        cohesion: Mean cosine to the group's middle: 1 if all are the same.
        nearest: None if the policy cannot say.
        texts: Of those nearest to the middle, if texts are kept.
        request_ids: Of the same.
    """

    size: int
    cohesion: float
    nearest: Nearest | None
    texts: tuple[str, ...]
    request_ids: tuple[str, ...]


def group_abstentions(rows: Sequence[DecisionRecord], k: int | None, policy: LivePolicy | None) -> list[Group]:
    """Groups of abstentions, largest first; blocking.

    Args:
        rows: With embeddings of one embedder.
        k: How many groups; None lets the silhouette decide.
        policy: Says which expert is nearest, if its embedder is theirs.
    """
    if not rows:
        return []
    embeddings = _unit(np.stack([np.frombuffer(row.embedding or b"", np.float16) for row in rows]))
    labels = _labels(embeddings, k)
    groups = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        middle = _unit(embeddings[members].mean(axis=0, keepdims=True))[0]
        cosines = embeddings[members] @ middle
        shown = [rows[number] for number in members[np.argsort(-cosines, kind="stable")][:MAX_SHOWN].tolist()]
        groups.append(
            Group(
                size=len(members),
                cohesion=float(cosines.mean()),
                nearest=_nearest(policy, rows[0].embedder, middle),
                texts=tuple(row.text for row in shown if row.text is not None),
                request_ids=tuple(row.request_id for row in shown),
            )
        )
    return sorted(groups, key=lambda group: -group.size)


def most_common_embedder(rows: Sequence[DecisionRecord]) -> list[DecisionRecord]:
    """The rows whose embeddings can be compared: those of the embedder and dimension that most of them have."""
    kinds = Counter((row.embedder, len(row.embedding or b"")) for row in rows)
    if not kinds:
        return []
    kind = kinds.most_common(1)[0][0]
    return [row for row in rows if (row.embedder, len(row.embedding or b"")) == kind]


def _labels(embeddings: Matrix, k: int | None) -> NDArray[np.int64]:
    """The group of each row, shape (n,). Equal rows weigh as many as they are, but their number makes no group."""
    from sklearn.metrics import silhouette_score  # takes a second that the gateway's start need not

    rows, place, counts = np.unique(embeddings, axis=0, return_inverse=True, return_counts=True)
    place = place.reshape(-1)
    if k is not None:
        return _k_means(rows, counts, min(k, len(rows)))[place]
    best, best_score = np.zeros(len(rows), np.int64), MIN_SILHOUETTE
    for num in range(2, min(MAX_GROUPS, len(rows) // MIN_PER_GROUP) + 1):
        labels = _k_means(rows, counts, num)
        sample = SILHOUETTE_SAMPLE if len(rows) > SILHOUETTE_SAMPLE else None
        score = float(silhouette_score(rows, labels, sample_size=sample, random_state=0))
        if score > best_score:
            best, best_score = labels, score
    return best[place]


def _k_means(rows: Matrix, counts: NDArray[np.int64], num: int) -> NDArray[np.int64]:
    from sklearn.cluster import KMeans

    labels = KMeans(num, n_init=4, random_state=0).fit_predict(rows, sample_weight=counts)
    return np.asarray(labels, np.int64)


def _nearest(policy: LivePolicy | None, embedder: str | None, middle: Vector) -> Nearest | None:
    """Whom a policy would rank first for a prompt in the middle of a group."""
    if policy is None or policy.embedder.name != embedder or policy.router.card.asks_base:
        return None
    candidates = policy.router.route(RouteQuery("", middle)).candidates
    return Nearest(candidates[0].expert_id, candidates[0].score) if candidates else None


def _unit(rows: NDArray[np.float16] | Matrix) -> Matrix:
    exact = np.asarray(rows, np.float32)
    return np.asarray(exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-12))
