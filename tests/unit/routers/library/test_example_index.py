"""Searching many examples in cells: what is found, and that nobody forbidden is."""

import numpy as np
import pytest

from routers.library import example_index
from routers.library.example_index import ExampleIndex
from tests.unit.routers.builders import centres, unit


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> ExampleIndex:
    """40 experts of 60 examples each, searched in cells."""
    monkeypatch.setattr(example_index, "MAX_EXACT", 1000)
    monkeypatch.setattr(example_index, "MIN_CELLS", 24)
    monkeypatch.setattr(example_index, "TRAINED_PER_CELL", 30)
    rng = np.random.default_rng(0)
    rows = unit(np.repeat(centres(40), 60, axis=0) + 0.25 * rng.normal(size=(2400, 32)))
    experts = [f"e{number}@{number:08x}" for number in range(40)]
    return ExampleIndex(rows, np.repeat(np.arange(40, dtype=np.int32), 60), experts, [f"x{n}" for n in range(2400)])


def test_cells_find_nearly_what_an_exact_search_finds(many: ExampleIndex) -> None:
    rng = np.random.default_rng(1)
    shared = []
    for query in unit(centres(40) + 0.25 * rng.normal(size=(40, 32))):
        found = many.nearest(query, 10)
        cosines = many.embeddings @ query
        np.testing.assert_allclose(found.cosines, cosines[found.rows], atol=1e-5)
        assert (np.diff(found.cosines) <= 0).all()
        shared.append(len(set(found.rows.tolist()) & set(np.argsort(-cosines)[:10].tolist())))
    assert np.mean(shared) >= 9.5


def test_forbidden_experts_are_not_found_in_cells_either(many: ExampleIndex) -> None:
    allowed = frozenset({"e3@00000003", "e7@00000007"})
    for query in centres(40):
        found = many.nearest(query, 10, allowed)
        assert set(many.owner[found.rows].tolist()) <= {3, 7}
