"""Router `molora`: softmax over cosines to cluster centres (Mo'LoRA, aicrumb, 2023).

    score(e) = largest cosine of the prompt to a centre of e,     weight(e) = softmax(score / T)

The project clusters questions with k-means and trains one expert per cluster. Here the experts exist already, so each
expert's own examples are clustered; with one centre, the project's second variant, that is their mean. The project's
code chooses the best expert (``top-1``). The weighted merge of all experts, which its author describes, is ``mixture``.
Centres are found by k-means with fixed seeds and have unit length.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from threading import Lock
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from sklearn.cluster import KMeans

from routers.base import MAX_EXPERTS, MethodCard, ScoredExpert
from routers.families.cards import EMBEDDING_CARD
from routers.families.options import CalibrationOptions
from routers.families.scoring import Closeness, Learned, Prompts, Scores, ScoringRouter
from routers.families.selection import Chosen, SelectionConfig, select
from routers.library.examples import Examples
from routers.maths.unit_rows import to_unit

MAX_KEPT = 8192


class Clusters:
    """A cache of cluster centres by examples, so that a new expert does not recompute those of the others.

    Args:
        max_kept: Number of experts whose centres are kept, the most recently used ones.
    """

    def __init__(self, max_kept: int = MAX_KEPT) -> None:
        self._max_kept = max_kept
        self._kept: OrderedDict[tuple[bytes, int], NDArray[np.floating]] = OrderedDict()
        self._lock = Lock()

    def centres(self, own: NDArray[np.floating], max_centres: int) -> NDArray[np.floating]:
        """Return up to `max_centres` centres, shape (C, d), of an expert's examples, shape (n, d)."""
        key = blake2b(np.ascontiguousarray(own).tobytes(), digest_size=16).digest(), max_centres
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        wanted = min(max_centres, len(np.unique(own, axis=0)))
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

    num_centres: int = Field(
        1, ge=1, le=64, description="Number of centres of each expert, at most that of its examples."
    )
    top_k: int = Field(8, ge=1, le=MAX_EXPERTS, description="Experts in a mixture.")
    temperature: float | None = Field(1.0, gt=0, description="Temperature T of the weights; the project uses 1.")


class MoLoraRouter(ScoringRouter):
    """Routes to the expert with the nearest cluster centre."""

    card: ClassVar[MethodCard] = replace(
        EMBEDDING_CARD,
        name="molora",
        title="Mo'LoRA: nearest cluster centre",
        paper="aicrumb, MoLora, 2023, its code",
        cost="one product with the cluster centres of all experts",
        differences=("each expert's own examples are clustered", "it may abstain"),
    )
    config_class: ClassVar[type[CalibrationOptions]] = MoLoraConfig
    closeness: ClassVar[Closeness] = "half"

    @classmethod
    def learn(cls, config: MoLoraConfig, examples: Examples) -> Learned:
        """Find all centres, shape (C, d), and the expert of each, shape (C,)."""
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
            raise ValueError(f"{len(self._centres)} centres with {len(self._owner)} owners")

    def scores(self, prompts: Prompts) -> Scores:
        """Return the largest cosine among each expert's centres; NaN for an expert without one."""
        cosines = prompts.embeddings @ self._centres.T
        found = np.full((len(cosines), len(self.experts)), -np.inf)
        np.maximum.at(found.T, self._owner, cosines.T)
        return np.where(np.isfinite(found), found, np.nan)

    def choose(self, ranked: Sequence[ScoredExpert]) -> Chosen:
        """Choose the best expert or a mix, as the option `selection` says."""
        return select(self.config, ranked)
