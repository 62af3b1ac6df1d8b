"""A map of the library: every expert's examples, projected from the embedder's space onto a plane.

The plane has the two largest principal components of the examples that are shown. It is the same for the same library
and embedder, signs included. Vectors come from the policies' vector store, so that a map usually embeds nothing. Only
the map of the library's present state is kept. A distance on the map is only a hint, because the plane has two of
several hundred dimensions; the nearest examples are computed in the whole space.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routers.base import LibraryExpert, Matrix, Vector, name_of
from routers.embedders.base import Embedder
from routers.fitting import library_version
from routers.maths.even_sample import evenly_spaced
from routers.text.request_views import example_view
from server.policies.vectors import VectorStore

MAX_POINTS = 3_000
MAX_TEXT_CHARS = 300
NUM_NEAREST = 5
EMBED_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Plane:
    """A plane, onto which a vector is projected by ``(vector - mean) @ axes``.

    Attributes:
        mean: Shape (dim,).
        axes: Shape (dim, 2); columns are of unit length, or zero where the examples do not vary.
        explained: Share of the examples' variance along each axis.
    """

    mean: Vector
    axes: Matrix
    explained: tuple[float, float]

    def project(self, rows: Matrix) -> NDArray[np.float32]:
        """Points, shape (n, 2), of vectors, shape (n, dim)."""
        return np.asarray((rows - self.mean) @ self.axes, np.float32)


def plane_of(rows: Matrix) -> Plane:
    """The plane of the two largest principal components of vectors, shape (n, dim).

    The largest loading of each axis is positive, so that the axes are unique.
    """
    num, dim = rows.shape
    axes = np.zeros((dim, 2), np.float32)
    mean = rows.mean(axis=0) if num else np.zeros(dim, np.float32)
    if num < 2:
        return Plane(mean, axes, (0.0, 0.0))
    centred = (rows - mean).astype(np.float64)
    variances, loadings = np.linalg.eigh(centred.T @ centred)  # smallest first; much faster than an SVD of the rows
    total = float(variances.sum())
    kept = [0.0, 0.0]
    for axis in range(min(2, dim)):
        variance = float(variances[-1 - axis])
        if variance > 1e-9 * max(total, 1e-9):
            column = loadings[:, -1 - axis]
            axes[:, axis] = column * np.sign(column[np.argmax(np.abs(column))])
            kept[axis] = variance / total
    return Plane(mean, axes, (kept[0], kept[1]))


def evenly(experts: Sequence[LibraryExpert], limit: int) -> list[tuple[str, str]]:
    """Up to `limit` pairs of expert id and example, shared evenly among the experts.

    Experts with few examples keep all of them; the other experts show evenly spaced examples.
    """
    left = limit
    pairs: list[tuple[str, str]] = []
    by_number = sorted(experts, key=lambda e: (len(e.examples), e.expert_id))
    for done, expert in enumerate(by_number):
        room = min(len(expert.examples), left // (len(by_number) - done))
        left -= room
        rows = evenly_spaced(len(expert.examples), room).tolist()
        pairs.extend((expert.expert_id, expert.examples[row]) for row in rows)
    return sorted(pairs)


@dataclass(frozen=True, slots=True)
class ExampleMap:
    """The map of one state of the library.

    Attributes:
        version: Version of the library and the embedder.
        embedder: Name of the embedder.
        num_examples: Number of examples of the library, shown or not.
        plane: The plane of the points.
        pairs: Expert id and example of each point.
        vectors: Embeddings of the examples, shape (n, dim).
        points: The examples on the plane, shape (n, 2).
    """

    version: str
    embedder: str
    num_examples: int
    plane: Plane
    pairs: tuple[tuple[str, str], ...]
    vectors: Matrix
    points: NDArray[np.float32]

    def as_json(self) -> dict[str, Any]:
        """For the admin API."""
        names = sorted({name_of(expert_id) for expert_id, _ in self.pairs})
        number = {name: index for index, name in enumerate(names)}
        return {
            "version": self.version,
            "embedder": self.embedder,
            "num_examples": self.num_examples,
            "explained": [round(part, 4) for part in self.plane.explained],
            "experts": names,
            "points": [
                {"expert": number[name_of(expert_id)], "x": _short(x), "y": _short(y), "text": example[:MAX_TEXT_CHARS]}
                for (expert_id, example), (x, y) in zip(self.pairs, self.points, strict=True)
            ],
        }

    def place(self, rows: Matrix) -> list[dict[str, Any]]:
        """The points of vectors, shape (n, dim), and the examples nearest to each vector by cosine."""
        similarities = rows @ self.vectors.T
        placed = []
        for (x, y), row in zip(self.plane.project(rows), similarities, strict=True):
            nearest = np.argsort(-row, kind="stable")[:NUM_NEAREST]
            near = [
                {
                    "expert": name_of(self.pairs[index][0]),
                    "text": self.pairs[index][1][:MAX_TEXT_CHARS],
                    "similarity": round(float(row[index]), 4),
                    "point": int(index),
                }
                for index in nearest
            ]
            placed.append({"x": _short(x), "y": _short(y), "nearest": near})
        return placed


class MapMaker:
    """Makes the map of the library's present state, once for each state.

    Args:
        embedder: The gateway's default embedder.
        store: Vectors of examples, kept between starts.
        max_points: Maximum number of examples that are shown.
    """

    def __init__(self, embedder: Embedder, store: VectorStore, max_points: int = MAX_POINTS) -> None:
        self._embedder = embedder
        self._store = store
        self._max_points = max_points
        self._making = asyncio.Lock()
        self._made: ExampleMap | None = None

    async def current(self, experts: Sequence[LibraryExpert]) -> ExampleMap:
        """The map of these experts; concurrent callers share one map."""
        async with self._making:
            version = await asyncio.to_thread(library_version, experts, self._embedder.name)
            if self._made is None or self._made.version != version:
                self._made = await self._make(experts, version)
            return self._made

    async def place(self, texts: Sequence[str], experts: Sequence[LibraryExpert]) -> tuple[ExampleMap, list[Any]]:
        """The current map, and where prompts fall on it."""
        made = await self.current(experts)
        rows = await self._embedder.embed([example_view(text) for text in texts])
        return made, await asyncio.to_thread(made.place, rows)

    async def _make(self, experts: Sequence[LibraryExpert], version: str) -> ExampleMap:
        pairs = tuple(await asyncio.to_thread(evenly, experts, self._max_points))
        known = await self._vectors(sorted({text for _, text in pairs}))

        def work() -> ExampleMap:
            empty: Matrix = np.zeros((0, self._embedder.dim), np.float32)
            vectors = np.stack([known[text] for _, text in pairs]) if pairs else empty
            plane = plane_of(vectors)
            num = sum(len(expert.examples) for expert in experts)
            return ExampleMap(version, self._embedder.name, num, plane, pairs, vectors, plane.project(vectors))

        return await asyncio.to_thread(work)

    async def _vectors(self, texts: Sequence[str]) -> Mapping[str, Vector]:
        name, dim = self._embedder.name, self._embedder.dim
        known = dict(await asyncio.to_thread(self._store.load, name, texts, dim))
        new = [text for text in texts if text not in known]
        for start in range(0, len(new), EMBED_CHUNK):
            chunk = new[start : start + EMBED_CHUNK]
            rows = await self._embedder.embed([example_view(text) for text in chunk], bulk=True)
            known.update(zip(chunk, rows, strict=True))
        return known


def _short(value: float) -> float:
    return round(float(value), 4)
