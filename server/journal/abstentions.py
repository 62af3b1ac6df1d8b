"""What no expert covers: prompts for which no expert was chosen, in groups of similar prompts.

The embeddings in the decision log are grouped by k-means on the sphere (unit rows, so that squared distance is
2 − 2·cosine). The number of groups, from 2 to `MAX_GROUPS`, is the one with the best mean silhouette on a sample; if
that is below `MIN_SILHOUETTE`, the prompts are one group. Shapes: n prompts, d dimensions. Cost: three to four seconds
of one core for `MAX_ROWS` prompts of 384 dimensions, in a worker thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from adapters_registry.decisions import DecisionQuery, DecisionRecord
from adapters_registry.stores.base import DecisionStore
from routers.base import Matrix, RouteQuery, Vector
from routers.maths.even_sample import evenly_spaced
from routers.maths.unit_rows import to_unit
from server.policies.live import LivePolicy

MAX_ROWS = 5000
READ_AT_ONCE = 100
MAX_GROUPS = 10
MIN_SILHOUETTE = 0.05
MIN_PER_GROUP = 3
SILHOUETTE_SAMPLE = 1000
MAX_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Nearest:
    """The expert that is nearest to a group's centre, with the router's score for it."""

    expert: str
    score: float


@dataclass(frozen=True, slots=True)
class Group:
    """A group of similar prompts.

    Attributes:
        size: Number of prompts.
        cohesion: Mean cosine to the group's centre; 1 if all prompts are equal.
        nearest: The nearest expert, or None if the policy cannot rank experts for the centre.
        texts: Texts of the prompts nearest to the centre, if texts are stored.
        request_ids: Ids of the same prompts' requests.
    """

    size: int
    cohesion: float
    nearest: Nearest | None
    texts: tuple[str, ...]
    request_ids: tuple[str, ...]


def group_abstentions(rows: Sequence[DecisionRecord], k: int | None, policy: LivePolicy | None) -> list[Group]:
    """Groups of abstentions, largest first; blocking.

    Args:
        rows: Abstentions with embeddings of one embedder.
        k: Number of groups; None lets the silhouette decide.
        policy: Ranks the experts for each group, if it uses the rows' embedder.
    """
    if not rows:
        return []
    embeddings = to_unit(np.stack([np.frombuffer(row.embedding or b"", np.float16) for row in rows]).astype(np.float32))
    with threadpool_limits(limits=1):  # on small matrices, more threads are slower and take cores from requests
        labels = _labels(embeddings, k)
    groups = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        centre = to_unit(embeddings[members].mean(axis=0, keepdims=True))[0]
        cosines = embeddings[members] @ centre
        shown = [rows[number] for number in members[np.argsort(-cosines, kind="stable")][:MAX_SHOWN].tolist()]
        groups.append(
            Group(
                size=len(members),
                cohesion=float(cosines.mean()),
                nearest=_nearest(policy, rows[0].embedder, centre),
                texts=tuple(row.text for row in shown if row.text is not None),
                request_ids=tuple(row.request_id for row in shown),
            )
        )
    return sorted(groups, key=lambda group: -group.size)


async def read_abstentions(store: DecisionStore, policy: str | None, since: datetime) -> list[DecisionRecord]:
    """The newest abstentions with an embedding, at most `MAX_ROWS`, read in steps that do not block the event loop."""
    query = DecisionQuery(READ_AT_ONCE, since=since, policy=policy, abstained=True, embedded=True)
    found: list[DecisionRecord] = []
    while len(found) < MAX_ROWS:
        page = await store.recent(query)
        found += page.decisions
        if page.next is None:
            break
        query = replace(query, before=page.next)
    return found[:MAX_ROWS]


def most_common_embedder(rows: Sequence[DecisionRecord]) -> list[DecisionRecord]:
    """The rows with comparable embeddings: those with the most common embedder and dimension."""
    kinds = Counter((row.embedder, len(row.embedding or b"")) for row in rows)
    if not kinds:
        return []
    kind = kinds.most_common(1)[0][0]
    return [row for row in rows if (row.embedder, len(row.embedding or b"")) == kind]


def _labels(embeddings: Matrix, k: int | None) -> NDArray[np.int64]:
    """The group of each row, shape (n,). Equal rows are clustered once, weighted by their number."""
    rows, place, counts = np.unique(embeddings, axis=0, return_inverse=True, return_counts=True)
    num = _num_groups(rows, counts) if k is None else min(k, len(rows))
    return _k_means(rows, counts, num)[place.reshape(-1)]


def _num_groups(rows: Matrix, counts: NDArray[np.int64]) -> int:
    """The number of groups that fits these distinct rows best, measured on an even sample."""
    from sklearn.metrics import silhouette_score  # takes a second, which would delay the gateway's start

    sample = evenly_spaced(len(rows), SILHOUETTE_SAMPLE)
    rows, counts = rows[sample], counts[sample]
    best, best_score = 1, MIN_SILHOUETTE
    for num in range(2, min(MAX_GROUPS, len(rows) // MIN_PER_GROUP) + 1):
        score = float(silhouette_score(rows, _k_means(rows, counts, num)))
        if score > best_score:
            best, best_score = num, score
    return best


def _k_means(rows: Matrix, counts: NDArray[np.int64], num: int) -> NDArray[np.int64]:
    from sklearn.cluster import KMeans

    labels = KMeans(num, n_init=4, random_state=0).fit_predict(rows, sample_weight=counts)
    return np.asarray(labels, np.int64)


def _nearest(policy: LivePolicy | None, embedder: str | None, centre: Vector) -> Nearest | None:
    """The expert that a policy would rank first for a prompt at the centre of a group."""
    if policy is None or policy.embedder.name != embedder or policy.router.card.asks_base:
        return None
    candidates = policy.router.route(RouteQuery("", centre)).candidates
    return Nearest(candidates[0].expert_id, candidates[0].score) if candidates else None
