"""Router `molora`: softmax over cosines to cluster centres (Mo'LoRA, aicrumb, 2023).

    score(e) = largest cosine of the prompt to a centre of e,     weight(e) = softmax(score / T)

The project clusters questions with k-means and trains one expert a cluster; a library's experts are there already, so
each expert's own examples are clustered: one centre is their mean, the project's second way. Its code chooses the best
expert (``top-1``); the weighted merge of all of them, which its author describes, is ``mixture``. Centres are
found by k-means with fixed seeds and have unit length.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from hashlib import blake2b
from threading import Lock
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from sklearn.cluster import KMeans

from routers.base import MAX_EXPERTS, MethodCard
from routers.families.scoring import Learned, Prompts, Scores, ScoringConfig
from routers.library.examples import Examples
from routers.maths.unit_rows import to_unit
from routers.methods.centroid import CentroidRouter, SelectionConfig

MAX_KEPT = 8192


class Clusters:
    """Centres of experts' examples, remembered by content: where one expert comes, those of the others stay.

    Args:
        max_kept: Experts whose centres are remembered, those that were asked for last.
    """

    def __init__(self, max_kept: int = MAX_KEPT) -> None:
        self._max_kept = max_kept
        self._kept: OrderedDict[tuple[bytes, int], NDArray[np.floating]] = OrderedDict()
        self._lock = Lock()

    def centres(self, own: NDArray[np.floating], most: int) -> NDArray[np.floating]:
        """At most `most` centres, shape (C, d), of an expert's examples, shape (n, d)."""
        key = blake2b(np.ascontiguousarray(own).tobytes(), digest_size=16).digest(), most
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        wanted = min(most, len(np.unique(own, axis=0)))
        found: NDArray[np.floating] = own.mean(axis=0, keepdims=True)
        if wanted > 1:
            found = KMeans(wanted, n_init=4, random_state=0).fit(own).cluster_centers_
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > self._max_kept:
                self._kept.popitem(last=False)
        return found


_clusters = Clusters()


class MoLoraConfig(SelectionConfig):
    """Options of `molora`."""

    num_centres: int = Field(1, ge=1, le=64, description="Centres of each expert, at most its examples.")
    top_k: int = Field(8, ge=1, le=MAX_EXPERTS, description="Experts in a mixture.")
    temperature: float | None = Field(1.0, gt=0, description="T of the weights; the project takes 1.")


class MoLoraRouter(CentroidRouter):
    """Nearest cluster centre; see the module's docstring."""

    card: ClassVar[MethodCard] = replace(
        CentroidRouter.card,
        name="molora",
        title="Mo'LoRA: nearest cluster centre",
        paper="aicrumb, MoLora, 2023, its code",
        differences=("each expert's own examples are clustered", "it may abstain"),
    )
    config_class: ClassVar[type[ScoringConfig]] = MoLoraConfig

    @classmethod
    def learn(cls, config: MoLoraConfig, examples: Examples) -> Learned:
        """All centres, shape (C, d), and the expert of each, shape (C,)."""
        if config.num_centres == 1:
            means = examples.mean_of_experts()
            there = np.flatnonzero(np.isfinite(means).all(axis=1))
            return Learned({"centres": to_unit(means[there]), "owner": there.astype(np.int32)})
        centres, owner = [], []
        for expert in np.unique(examples.owner).tolist():
            own = examples.embeddings[examples.owner == expert]
            found = _clusters.centres(own, config.num_centres)
            centres.append(to_unit(found))
            owner += [expert] * len(found)
        stacked = np.concatenate(centres) if centres else np.zeros((0, examples.embeddings.shape[1]))
        return Learned({"centres": stacked.astype(np.float32), "owner": np.array(owner, np.int32)})

    def prepare(self, learned: Learned) -> None:
        """Take the centres."""
        self._centres = np.asarray(learned.arrays["centres"], np.float32)
        self._owner = np.asarray(learned.arrays["owner"])
        if len(self._centres) != len(self._owner):
            raise ValueError("centres without an expert")

    def scores(self, prompts: Prompts) -> Scores:
        """Largest cosine among an expert's centres."""
        cosines = prompts.embeddings @ self._centres.T
        found = np.full((len(cosines), len(self.experts)), -np.inf)
        np.maximum.at(found.T, self._owner, cosines.T)
        return np.where(np.isfinite(found), found, np.nan)
