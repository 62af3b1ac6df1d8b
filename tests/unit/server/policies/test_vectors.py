"""Embeddings on disk: kept by embedder and text, and never in the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from server.policies.vectors import VectorStore


def row(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_vectors_come_back_for_their_embedder_and_size_only(tmp_path: Path) -> None:
    store = VectorStore(tmp_path / "new" / "vectors.sqlite")
    assert store.load("a", ["x"], 2) == {}
    store.add("a", {"x": row(1, 2), "\ud800 lone": row(3, 4)})
    store.add("a", {"x": row(5, 6)})
    again = VectorStore(tmp_path / "new" / "vectors.sqlite").load("a", ["x", "\ud800 lone", "unknown"], 2)
    assert {text: found.tolist() for text, found in again.items()} == {"x": [5, 6], "\ud800 lone": [3, 4]}
    assert store.load("b", ["x"], 2) == {}
    assert store.load("a", ["x"], 3) == {}
    assert b"lone" not in (tmp_path / "new" / "vectors.sqlite").read_bytes()


def test_what_the_library_has_lost_is_forgotten(tmp_path: Path) -> None:
    store = VectorStore(tmp_path / "vectors.sqlite")
    store.add("a", {"x": row(1), "y": row(2)})
    store.add("b", {"x": row(3)})
    store.keep_only("a", ["y", "z"])
    assert list(store.load("a", ["x", "y"], 1)) == ["y"]
    assert list(store.load("b", ["x"], 1)) == ["x"]


def test_a_file_that_cannot_be_used_is_no_obstacle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = VectorStore(tmp_path)
    store.add("a", {"x": row(1)})
    store.keep_only("a", ["x"])
    assert store.load("a", ["x"], 1) == {}
    assert capsys.readouterr().out.count("stored embeddings are not") == 3


def test_a_damaged_file_is_begun_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "vectors.sqlite"
    path.write_bytes(b"garbage that is no database" * 100)
    store = VectorStore(path)
    assert store.load("a", ["x"], 1) == {}
    assert "not a database" in capsys.readouterr().out
    store.add("a", {"x": row(1)})
    assert store.load("a", ["x"], 1)["x"].tolist() == [1]
