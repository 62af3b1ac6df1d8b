"""Router `benchmark_routing`: the model that was right on the nearest labelled prompts (Shnitzer et al., 2023).

    g_m(x) = mean score of model m on the k prompts nearest to x (cosine) whose score of m is known
    s1(m)  = mean over the task's prompts x of g_m(x)
    s2(m)  = mean over the task's prompts x of 1[g_m(x) > t]
    s3(m)  = s2 · p_m + (1 - s2) · (1 - p_m)

The task's prompts are those of the query's window (`TaskWindow`), or the prompt alone without a ``task_id``. p_m is the
probability that the prediction 1[g_m > t] is right on a task at this distance from the table. It is estimated by
holding out one task T of the table at a time. u_T is T's distance, the mean cosine distance of its prompts to their k
nearest among the other tasks. p_Tm is the share of T's prompts on which 1[g_m > t] from the other tasks is right. Then

    p_m(u) = Σ_T K(u - u_T) p_Tm / Σ_T K(u - u_T)          K a Gaussian, whose width is Scott's rule over the u_T

With ``s3``, the winner is compared with the model that is best on average over the table. The share of the task's
prompts that a model gets right is modelled as normal, with mean s3 and variance p (1 - p) / num_prompts. If the winner
is better with a probability of at most η, the mean scores over the table decide instead. Where predictions are no
better than chance, p and s3 of every model are one half, and the best model on average is chosen.

If the base wins, the router abstains. Prompts without a task are clustered, and a cluster is held out like a task.
Shapes: n labelled prompts, M = 1 + E models. Cost: n · d multiplications for each prompt of the window; fitting is
instant for s1 and s2, and compares up to 256 prompts of each task with the table for s3. The authors published no code.
"""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from routers.base import Floats, Matrix, MethodCard, Progress, RouteQuery
from routers.families.cards import SCORE_TABLE_CARD
from routers.families.score_table import Mask, Scored, TableConfig, TableRouter, Values, tags_of
from routers.families.scoring import Learned, asked
from routers.maths.even_sample import evenly_spaced
from routers.maths.largest import columns_of_largest

_MAX_HELD_OUT = 256
_BLOCK = 64


class BenchmarkRoutingConfig(TableConfig):
    """Options of `benchmark_routing`."""

    score: Literal["s1", "s2", "s3"] = Field(
        "s1",
        description="How a task's prompts count: by predicted correctness (s1), by whether it is above t (s2), or "
        "like s2 but discounted by the distance from the table (s3).",
    )
    k: int = Field(5, ge=1, description="Number of nearest labelled prompts that predict a model's correctness.")
    t: float = Field(0.5, ge=0, lt=1, description="Above this value an answer, or its prediction, counts as right.")
    eta: float = Field(
        0.6, ge=0, lt=1, description="Probability with which s3's winner must beat the model that is best on average."
    )
    bandwidth: float | None = Field(
        None, gt=0, description="Width of s3's kernel in cosine distance; unset: Scott's rule."
    )


class BenchmarkRoutingRouter(TableRouter):
    """Routes to the model that was right on the nearest labelled prompts."""

    card: ClassVar[MethodCard] = replace(
        SCORE_TABLE_CARD,
        name="benchmark_routing",
        title="Routing with benchmark datasets",
        paper="Shnitzer et al., Large Language Model Routing with Benchmark Datasets, 2023 (arXiv:2309.15789)",
        input_granularity="task",
        generalization="tasks near the table; the best model on average elsewhere (s3)",
        user_dataset="unlabelled prompts of the task",
        reads_task=True,
        cost="one exact nearest-neighbour search over the table for each prompt of the task's window",
        differences=(
            "the window of the last prompts replaces the task's data set",
            "s1 by default, as in the paper's experiment that chooses per instance",
            "graded scores: s1 averages them, s2 and s3 count those above t as right",
            "the kernel's width follows Scott's rule",
        ),
        standing="recommended",
    )
    config_class: ClassVar[type[TableConfig]] = BenchmarkRoutingConfig

    @classmethod
    def learn(cls, config: BenchmarkRoutingConfig, scored: Scored, progress: Progress) -> Learned:
        """Keep the table; for s3 also compute distances (T,) and accuracies (T, M) of its tasks, each held out."""
        arrays: dict[str, NDArray[Any]] = {"embeddings": scored.embeddings, "scores": scored.scores}
        if config.score == "s3":
            arrays["distances"], arrays["accuracies"] = held_out_tasks(scored, config.k, config.t, progress)
        return Learned(arrays)

    def prepare(self, learned: Learned) -> None:
        """Take the table."""
        self._neighbours = Neighbours(
            np.asarray(learned.arrays["embeddings"], np.float32), np.asarray(learned.arrays["scores"], np.float64)
        )
        num_models = 1 + len(self.experts)
        if self._neighbours.scores.shape != (len(self._neighbours.embeddings), num_models):
            raise ValueError("the table's prompts and scores do not match")
        if self.config.score == "s3":
            self._distances = np.asarray(learned.arrays["distances"], np.float64)
            self._accuracies = np.asarray(learned.arrays["accuracies"], np.float64)
            if self._accuracies.shape != (len(self._distances), num_models):
                raise ValueError("the tasks' distances and accuracies do not match")
            self._bandwidth = self.config.bandwidth or scotts_rule(self._distances)

    def values(self, query: RouteQuery, allowed: Mask) -> Values:
        """Value the models as the option `score` says."""
        prompts = asked(query, self.card).embeddings
        if not len(prompts):  # the window has no comparable prompt, but the request has
            prompts = np.asarray(query.embedding, np.float32)[None]
        g, distance = self._neighbours.predict(prompts, self.config.k)
        if self.config.score == "s1":
            s1 = g.mean(axis=0)
            return Values(s1, s1, "Score on the nearest labelled prompts is")
        s2 = np.where(np.isnan(g), np.nan, g > self.config.t).mean(axis=0)
        if self.config.score == "s2":
            return Values(s2, s2, "Share of prompts predicted to be right is")
        p = smooth(float(distance.mean()), self._distances, self._accuracies, self._bandwidth)
        s3 = s2 * p + (1 - s2) * (1 - p)
        if self._beats_average(s3, p, allowed, len(prompts)):
            return Values(s3, s3, "Expected correctness is")
        return Values(self.means, self.means, "The task is too far from the table; mean score over the table is")

    def _beats_average(self, s3: Floats, p: Floats, allowed: Mask, num_prompts: int) -> bool:
        """Return whether s3's winner is the model with the best average, or beats it with a probability above η.

        Ties in s3 go to the base, then to the model with the better average, as in `route`.
        """
        models = np.flatnonzero(allowed & np.isfinite(s3))
        winner = models[np.lexsort((-self.means[models], models != 0, -s3[models]))[0]]
        average = models[np.argmax(self.means[models])]
        if winner == average:
            return True
        deviation = math.sqrt(sum(p[model] * (1 - p[model]) for model in (winner, average)) / num_prompts)
        if deviation == 0:
            return bool(s3[winner] > s3[average])
        return NormalDist().cdf(float(s3[winner] - s3[average]) / deviation) > float(self.config.eta)


class Neighbours:
    """The embeddings of the table's prompts, (n, d), and the scores of all models, (n, M); immutable."""

    def __init__(self, embeddings: Matrix, scores: Floats) -> None:
        self.embeddings = embeddings
        self.scores = scores
        patterns, group = np.unique(np.isfinite(scores), axis=1, return_inverse=True)
        self._groups = [  # models whose scores are known for the same prompts, with these prompts
            (np.flatnonzero(group.reshape(-1) == number), np.flatnonzero(pattern))
            for number, pattern in enumerate(patterns.T)
        ]

    def predict(self, prompts: Matrix, k: int) -> tuple[Floats, Floats]:
        """Return mean scores on the k nearest, (p, M), NaN for models without any, and mean distances to them, (p,)."""
        g = np.full((len(prompts), self.scores.shape[1]), np.nan)
        distances = np.empty(len(prompts))
        for start in range(0, len(prompts), _BLOCK):
            block = slice(start, start + _BLOCK)
            cosines = prompts[block] @ self.embeddings.T
            near = columns_of_largest(cosines, k)
            distances[block] = 1 - np.take_along_axis(cosines, near, axis=1).mean(axis=1)
            for models, rows in self._groups:
                if len(rows):
                    nearest = near if len(rows) == cosines.shape[1] else rows[columns_of_largest(cosines[:, rows], k)]
                    g[block, models] = self.scores[nearest[:, :, None], models].mean(axis=1)
        return g, distances


def held_out_tasks(scored: Scored, k: int, t: float, progress: Progress) -> tuple[Floats, Floats]:
    """Return each task's distance from the others, (T,), and how often 1[g > t] is right on it, (T, M), or NaN."""
    tags = tags_of(scored)
    tasks = np.unique(tags)
    distances, accuracies = [], []
    for number, task in enumerate(tasks if len(tasks) > 1 else []):
        progress(number, len(tasks))
        own, others = np.flatnonzero(tags == task), np.flatnonzero(tags != task)
        own = own[evenly_spaced(len(own), _MAX_HELD_OUT)]
        g, distance = Neighbours(scored.embeddings[others], scored.scores[others]).predict(scored.embeddings[own], k)
        comparable = np.isfinite(g) & scored.known[own]
        agree = comparable & ((g > t) == (scored.scores[own] > t))
        counts = comparable.sum(axis=0)
        distances.append(float(distance.mean()))
        accuracies.append(np.where(counts > 0, agree.sum(axis=0) / np.maximum(counts, 1), np.nan))
    progress(len(tasks), len(tasks))
    return np.array(distances), np.array(accuracies).reshape(len(distances), scored.scores.shape[1])


def smooth(distance: float, distances: Floats, accuracies: Floats, bandwidth: float) -> Floats:
    """Return p_m at a distance, shape (M,), over the tasks where m's accuracy is known; one half if there is none."""
    known = np.isfinite(accuracies)
    exponents = np.where(known, (-(((distance - distances) / bandwidth) ** 2) / 2)[:, None], -np.inf)
    nearest = exponents.max(axis=0, initial=-np.inf)
    weights = np.where(known, np.exp(exponents - np.where(np.isfinite(nearest), nearest, 0.0)), 0.0)
    sums = weights.sum(axis=0)
    found = (weights * np.where(known, accuracies, 0.0)).sum(axis=0) / np.where(sums > 0, sums, 1.0)
    return np.where(sums > 0, found, 0.5)


def scotts_rule(distances: Floats) -> float:
    """Return the width of a Gaussian kernel over T points: standard deviation times T^(-1/5), at least 0.01."""
    if len(distances) < 2:
        return 0.1
    return max(float(distances.std(ddof=1)) / float(len(distances) ** 0.2), 0.01)
