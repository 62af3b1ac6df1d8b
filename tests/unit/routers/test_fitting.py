"""The library's content hash and data for fitters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from routers.base import LibraryExpert
from routers.errors import NotFittable
from routers.fitting import fit_data, library_version

A = LibraryExpert("a@00000000", "about a", ("t",), ("x", "y"))
B = LibraryExpert("b@00000000")


def test_version_ignores_order_and_sees_every_content() -> None:
    version = library_version([A, B], "embedder")
    assert version == library_version([B, A], "embedder")
    changed = [
        library_version([A], "embedder"),
        library_version([A, B], "other"),
        *(
            library_version([replace(A, **change), B], "embedder")
            for change in (
                {"expert_id": "a@00000001"},
                {"description": ""},
                {"tags": ()},
                {"tags": ("t", "")},
                {"examples": ("xy",)},
                {"examples": ("y", "x")},
                {"tags": (), "examples": ("t", "x", "y")},
            )
        ),
    ]
    assert len({version, *changed}) == len(changed) + 1


def test_version_takes_any_text() -> None:
    assert len(library_version([replace(A, description="\ud800\x00")], "e")) == 64


def test_data_is_sorted_and_checked() -> None:
    rows = np.eye(2, dtype=np.float32)
    data = fit_data([B, A], {"a@00000000": rows}, "embedder")
    assert [expert.expert_id for expert in data.experts] == ["a@00000000", "b@00000000"]
    assert data.version == library_version([A, B], "embedder")
    with pytest.raises(NotFittable, match="2 examples but 1 embeddings"):
        fit_data([A], {"a@00000000": rows[:1]}, "embedder")
    with pytest.raises(NotFittable, match="0 embeddings"):
        fit_data([A], {}, "embedder")
