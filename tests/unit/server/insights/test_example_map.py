"""The map: principal components against scikit-learn's, fair shares, and one map for one library."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from routers.base import LibraryExpert
from routers.embedders.batching import BatchingEmbedder
from routers.embedders.hashing import HashingEncoder
from server.insights.example_map import MapMaker, evenly, plane_of
from server.policies.vectors import VectorStore


def expert(name: str, num: int) -> LibraryExpert:
    return LibraryExpert(f"{name}@00000000", examples=tuple(f"{name} prompt {number}" for number in range(num)))


def test_the_plane_is_that_of_the_principal_components() -> None:
    rows = np.random.default_rng(0).normal(size=(200, 12)).astype(np.float32) * np.linspace(3, 1, 12, dtype=np.float32)
    plane = plane_of(rows)
    reference = PCA(n_components=2, svd_solver="full").fit(rows)
    assert plane.explained == pytest.approx(reference.explained_variance_ratio_, rel=1e-4)
    assert np.abs(plane.axes.T @ reference.components_.T) == pytest.approx(np.eye(2), abs=1e-3)
    loudest = plane.axes[np.abs(plane.axes).argmax(axis=0), [0, 1]]
    assert (loudest > 0).all()
    assert np.array_equal(plane.project(rows), plane_of(rows).project(rows))


@pytest.mark.parametrize("num", [0, 1, 2, 3])
def test_few_or_equal_examples_still_have_a_place(num: int) -> None:
    varied = np.eye(4, dtype=np.float32)[:num]
    for rows in (varied, np.ones((num, 4), np.float32)):
        plane = plane_of(rows)
        assert np.isfinite(plane.project(rows)).all()
        assert plane.project(rows).shape == (num, 2)
        assert 0 <= sum(plane.explained) <= 1 + 1e-6


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(0, 60))
def test_shares_are_even_and_bounded(numbers: list[int], limit: int) -> None:
    experts = [expert(f"e{number:02}", num) for number, num in enumerate(numbers)]
    pairs = evenly(experts, limit)
    assert len(pairs) == len(set(pairs)) == min(limit, sum(numbers))
    taken = [sum(expert_id == each.expert_id for expert_id, _ in pairs) for each in experts]
    cut = [count for count, num in zip(taken, numbers, strict=True) if count < num]
    assert all(count <= num for count, num in zip(taken, numbers, strict=True))
    assert not cut or max(taken) <= min(cut) + 1  # nobody has more than one that was cut, but for the remainder


@pytest.fixture
def encoder() -> Iterator["Counting"]:
    yield Counting()


class Counting(HashingEncoder):
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def encode(self, texts: list[str]) -> np.ndarray:  # type: ignore[override]
        self.texts.extend(texts)
        return super().encode(texts)


async def test_a_map_is_made_once_for_a_library_and_uses_stored_vectors(tmp_path: Path, encoder: Counting) -> None:
    store = VectorStore(tmp_path / "vectors.sqlite")
    library = [expert("sql", 3), expert("dates", 2)]
    known = library[0].examples
    store.add(encoder.name, dict(zip(known, HashingEncoder().encode(known), strict=True)))
    embedder = BatchingEmbedder(encoder, cache_entries=0)
    try:
        maker = MapMaker(embedder, store)
        made = await maker.current(library)
        assert set(encoder.texts) == set(library[1].examples)
        assert await maker.current(list(reversed(library))) is made
        shown = made.as_json()
        assert shown["experts"] == ["dates", "sql"]
        assert [(point["expert"], point["text"]) for point in shown["points"]] == sorted(
            (("dates", "sql").index(each.expert_id.partition("@")[0]), text)
            for each in library
            for text in each.examples
        )
        _, (placed,) = await maker.place([known[1]], library)
        point = next(point for point in shown["points"] if point["text"] == known[1])
        assert (placed["x"], placed["y"]) == pytest.approx((point["x"], point["y"]), abs=2e-4)
        nearest = placed["nearest"][0]
        assert (nearest["text"], nearest["similarity"]) == (known[1], 1.0)
        assert shown["points"][nearest["point"]] == point
        other = await maker.current([expert("sql", 4)])
        assert other.version != made.version and other.num_examples == 4
    finally:
        await embedder.close()


async def test_an_empty_library_has_an_empty_map(tmp_path: Path) -> None:
    embedder = BatchingEmbedder(HashingEncoder())
    try:
        made, (placed,) = await MapMaker(embedder, VectorStore(tmp_path / "v.sqlite")).place(["a prompt"], [])
        assert made.as_json()["points"] == []
        assert placed == {"x": 0.0, "y": 0.0, "nearest": []}
    finally:
        await embedder.close()
