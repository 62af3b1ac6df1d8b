"""An index of all experts' example prompts: search by cosine, restricted to the experts that a caller may use.

Shapes: n examples of all experts together, d dimensions, E experts.

The search is exact up to `MAX_EXACT` examples. Larger libraries are divided into about √n cells around centres (k-means
on an even sample), and a search visits the nearest cells: a sixteenth of them, at least `MIN_CELLS`. `python -m
routers.evaluation.bench` measures the time saved and the examples missed.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from routers.base import Matrix, Neighbour, Vector
from routers.errors import NotFittable
from routers.maths.even_sample import evenly_spaced


class Near(NamedTuple):
    """The examples that a search found, best first: rows (found,), int64, and cosines (found,), float32."""

    rows: NDArray[np.int64]
    cosines: Vector


MAX_EXACT = 20_000
CELLS_SEARCHED = 1 / 16
MIN_CELLS = 32
TRAINED_PER_CELL = 48

NOTHING = Near(np.empty(0, np.int64), np.empty(0, np.float32))


class ExampleIndex:
    """The examples with their embeddings (n, d) and the number of each one's expert (n,); immutable."""

    def __init__(self, embeddings: Matrix, owner: NDArray[np.int32], experts: list[str], texts: list[str]) -> None:
        self.embeddings = embeddings
        self.owner = owner
        self.experts = experts
        self.texts = texts
        self.num_examples: NDArray[np.int64] = np.bincount(owner, minlength=len(experts))
        self._number = {expert: number for number, expert in enumerate(experts)}
        self._faiss = _faiss()
        self._num_probed = 0
        self._index: Any = self._faiss.IndexFlatIP(embeddings.shape[1])
        if len(embeddings) > MAX_EXACT:
            self._index = self._cells(embeddings)
        # With a selector, even one that selects everything, a search runs on the calling thread. Without one, FAISS
        # spreads a query over OpenMP threads, which took four times as long on a busy machine.
        self._all: Any = self._parameters(self._faiss.IDSelectorAll())
        if len(embeddings):
            self._index.add(np.ascontiguousarray(embeddings))

    def nearest(self, query: Vector, k: int, candidates: frozenset[str] | None = None) -> Near:
        """Find the k examples of allowed experts that are nearest to a query, shape (d,)."""
        if not self.texts:
            return NOTHING
        if query.shape != (self.embeddings.shape[1],):
            raise ValueError(
                f"a query of shape {query.shape} cannot be compared with {self.embeddings.shape[1]} dimensions"
            )
        parameters, num_allowed = self._all, len(self.texts)
        if candidates is not None:
            allowed = np.zeros(len(self.experts), dtype=bool)
            allowed[[self._number[c] for c in candidates if c in self._number]] = True
            num_allowed = int(self.num_examples[allowed].sum())
            if not num_allowed:
                return NOTHING
            bits = np.packbits(allowed[self.owner], bitorder="little")
            parameters = self._parameters(self._faiss.IDSelectorBitmap(bits))
        row = np.array(query, dtype=np.float32)[None]
        cosines, rows = self._index.search(row, min(k, num_allowed), params=parameters)
        found = rows[0] >= 0
        return Near(rows[0][found], cosines[0][found])

    def _cells(self, embeddings: Matrix) -> Any:
        """Return a trained, empty index of cells."""
        num_cells = 2 ** round(np.log2(1.2 * np.sqrt(len(embeddings))))
        self._num_probed = max(MIN_CELLS, int(num_cells * CELLS_SEARCHED))
        dim = embeddings.shape[1]
        metric = self._faiss.METRIC_INNER_PRODUCT
        self._centres = self._faiss.IndexFlatIP(dim)  # the index only points to this object, so keep it alive
        index = self._faiss.IndexIVFFlat(self._centres, dim, num_cells, metric)
        index.cp.niter, index.cp.seed = 8, 0
        sample = evenly_spaced(len(embeddings), TRAINED_PER_CELL * num_cells)
        index.train(np.ascontiguousarray(embeddings[sample]))
        return index

    def _parameters(self, selector: Any) -> Any:
        if self._num_probed:
            return self._faiss.SearchParametersIVF(sel=selector, nprobe=self._num_probed)
        return self._faiss.SearchParameters(sel=selector)

    def nearest_to_examples(self, rows: NDArray[np.int64], k: int, asked: Matrix | None = None) -> list[Near]:
        """Find the k nearest examples of each of these examples, itself first.

        Args:
            rows: The examples, shape (p,).
            k: Number of examples to find for each.
            asked: Embeddings to search with, shape (p, d); None for the examples' own.
        """
        # One matrix product: FAISS would search query by query, which is eight times slower here.
        cosines = (self.embeddings[rows] if asked is None else asked) @ self.embeddings.T
        cosines[np.arange(len(rows)), rows] = 2.0
        k = min(k, cosines.shape[1])
        nearest = np.argpartition(cosines, cosines.shape[1] - k, axis=1)[:, -k:]
        found = []
        for row, columns in zip(cosines, nearest, strict=True):
            order = columns[np.lexsort((columns, -row[columns]))]
            found.append(Near(order.astype(np.int64), np.minimum(row[order], np.float32(1.0))))
        return found

    def quote(self, near: Near, max_neighbours: int) -> tuple[Neighbour, ...]:
        """Return the first neighbours with their texts, for a decision."""
        pairs = zip(near.rows[:max_neighbours].tolist(), near.cosines.tolist(), strict=False)
        return tuple(Neighbour(self.experts[self.owner[row]], self.texts[row], cosine) for row, cosine in pairs)


def _faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise NotFittable("routing by examples needs FAISS: pip install faiss-cpu") from error
