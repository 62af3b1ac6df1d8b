"""Centres of several clusters: scikit-learn's, and remembered by what was clustered."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans

from routers.methods import molora
from routers.methods.molora import Clusters


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of rows that were clustered."""
    seen: list[int] = []

    class Counting(KMeans):
        def fit(self, rows: np.ndarray, *_more: object) -> KMeans:
            seen.append(len(rows))
            return super().fit(rows)

    monkeypatch.setattr(molora, "KMeans", Counting)
    return seen


def rows_of(seed: int, num: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num, 8)).astype(np.float32)


def test_centres_are_those_of_k_means_and_are_found_once(fits: list[int]) -> None:
    clusters, rows = Clusters(), rows_of(1)
    expected = KMeans(3, n_init=4, random_state=0).fit(rows).cluster_centers_
    for _ in range(3):
        np.testing.assert_allclose(clusters.centres(rows.copy(), 3), expected, rtol=1e-6)
    assert fits == [20]


def test_other_examples_and_other_numbers_have_other_centres(fits: list[int]) -> None:
    clusters = Clusters()
    assert {len(clusters.centres(rows_of(seed), most)) for seed in (1, 2) for most in (2, 3)} == {2, 3}
    assert len(fits) == 4
    assert clusters.centres(np.tile(rows_of(1, 1), (5, 1)), 3).shape == (1, 8)


def test_only_so_many_are_remembered(fits: list[int]) -> None:
    clusters = Clusters(max_kept=2)
    for seed in (1, 2, 1, 3, 1, 2):  # 3 takes the place of 2, which was asked for longest ago
        clusters.centres(rows_of(seed, 10 + seed), 2)
    assert fits == [11, 12, 13, 12]
