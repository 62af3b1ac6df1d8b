"""Choosing K experts of a library, in front of any policy (Lotfi et al., 2026: subsets keep most of the quality).

``cluster``: k-means on the directions of the experts' mean example embeddings, then the medoid of each cluster, the
expert with the smallest summed squared distance to the others of its cluster. That is the one nearest to the cluster's
mean. Experts without an example are never chosen, and identical experts reduce the number of clusters below K.

``greedy``: forward selection on the score table. With s the metric's value of model m on sample i,

    F(S) = mean over tasks of the mean over their samples of max(s_i,base, max over e in S of s_i,e)

is the score of a router that is always right, with the experts S. It is monotone and submodular (facility location), so
adding K times the expert with the largest gain reaches at least 1 − 1/e of the best gain over the base that K experts
can reach (Nemhauser et al., 1978). An unknown score counts as zero. Ties go by id. Cost: K · E · n additions.

Only the abstract of the paper was available; these are the readings of it that need no training. `restrict` reduces a
library to the chosen experts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from routers.base import BASE, FitData, ScoreTable
from routers.errors import NotFittable
from routers.fitting import LACKING
from routers.library.examples import examples_of
from routers.library.subset_config import SubsetConfig
from routers.maths.unit_rows import to_unit


def select(config: SubsetConfig, data: FitData) -> tuple[str, ...]:
    """Choose up to ``config.size`` experts and return their ids, sorted; raises `NotFittable` without data."""
    everyone = tuple(sorted(expert.expert_id for expert in data.experts))
    if len(everyone) <= config.size:
        return everyone
    return cluster(config, data) if config.method == "cluster" else greedy(config, data)


def restrict(data: FitData, ids: Iterable[str]) -> FitData:
    """Return the library with only these experts; raises ValueError for an expert that it lacks.

    Samples stay. The version stays too, because the choice depends on the whole library.
    """
    kept = frozenset(ids)
    experts = tuple(expert for expert in data.experts if expert.expert_id in kept)
    if unknown := kept - {expert.expert_id for expert in experts}:
        raise ValueError(f"the library has no {', '.join(sorted(unknown))}")
    return replace(
        data,
        experts=experts,
        embeddings={expert: rows for expert, rows in data.embeddings.items() if expert in kept},
        bare={expert: rows for expert, rows in data.bare.items() if expert in kept},
        scores=None if data.scores is None else _columns(data.scores, kept),
    )


def cluster(config: SubsetConfig, data: FitData) -> tuple[str, ...]:
    """Return the medoids of the clusters, sorted."""
    examples = examples_of(data)
    if not examples.texts:
        raise NotFittable(f"Experts are clustered by their examples, but {LACKING['examples']}", "examples")
    means = examples.mean_of_experts().astype(np.float64)
    known = np.flatnonzero(np.isfinite(means).all(axis=1))
    points = to_unit(means[known])
    num = min(config.size, len(np.unique(points, axis=0)))
    from sklearn.cluster import KMeans  # reading settings that name a subset must not load this

    model = KMeans(num, n_init=10, random_state=config.seed).fit(points)
    distances = ((points - model.cluster_centers_[model.labels_]) ** 2).sum(axis=1)
    members = [np.flatnonzero(model.labels_ == number) for number in range(num)]
    medoids = [own[_first_largest(-distances[own])] for own in members]
    return tuple(sorted(examples.experts[known[row]] for row in medoids))


def greedy(config: SubsetConfig, data: FitData) -> tuple[str, ...]:
    """Choose by forward selection; the result is sorted."""
    table = data.scores
    if table is None or not len(table.samples):
        raise NotFittable(f"Experts are chosen by their scores, but {LACKING['scores']}", "scores")
    experts = sorted(expert.expert_id for expert in data.experts)
    column = {model: number for number, model in enumerate(table.models)}
    scores = np.nan_to_num(table.scores)
    nothing = np.zeros(len(scores))
    of_expert = np.stack([scores[:, column[e]] if e in column else nothing for e in experts], axis=1)
    share = macro_shares([sample.task for sample in table.samples])
    best = scores[:, column[BASE]] if BASE in column else nothing
    left = list(range(len(experts)))
    chosen: list[str] = []
    while left and len(chosen) < config.size:
        values = share @ np.maximum(best[:, None], of_expert[:, left])
        number = left.pop(_first_largest(values))
        best = np.maximum(best, of_expert[:, number])
        chosen.append(experts[number])
    return tuple(sorted(chosen))


def macro_shares(tasks: list[str]) -> NDArray[np.float64]:
    """Return the weight of each sample, shape (n,), such that all tasks weigh the same; sums to one."""
    _, owner, counts = np.unique(np.array(tasks), return_inverse=True, return_counts=True)
    return np.asarray(1 / (len(counts) * counts[owner]), np.float64)


def _first_largest(values: NDArray[np.float64]) -> int:
    """Return the first index of the maximum, up to rounding, so that ties go by id."""
    return int(np.argmax(values >= values.max() - 1e-12))


def _columns(table: ScoreTable, kept: frozenset[str]) -> ScoreTable:
    columns = [number for number, model in enumerate(table.models) if model == BASE or model in kept]
    return replace(
        table,
        models=tuple(table.models[number] for number in columns),
        scores=table.scores[:, columns],
        losses=table.losses[:, columns],
        prompt_losses=table.prompt_losses[:, columns],
        entropies=table.entropies[:, columns],
    )
