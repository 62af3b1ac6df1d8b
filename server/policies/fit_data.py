"""The data that policies are fitted to: the library with embedded examples, the table of scores, and a version of both.

Embeddings are kept by embedder and text, in memory and on disk, so that only new examples of a library are embedded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from adapters_registry.records import AdapterRecord
from routers.base import FitData, LibraryExpert, Matrix, Progress, Sample, ScoreTable, Vector, no_progress
from routers.embedders.base import Embedder
from routers.fitting import data_version, fit_data, library_version
from routers.text.request_views import example_view
from routers.text.templates import bare_texts
from server.policies.scores import ScoreStore, Stamp
from server.policies.vectors import VectorStore

EMBED_CHUNK = 256

Experts = tuple[LibraryExpert, ...]


class PolicyData:
    """Gathers the data that policies are fitted to, and keeps embeddings of examples in memory and on disk.

    Args:
        scores: The table that some methods learn from.
        store: Keeps embeddings across restarts.
    """

    def __init__(self, scores: ScoreStore, store: VectorStore) -> None:
        self._scores = scores
        self._store = store
        self._vectors: dict[str, dict[str, Vector]] = {}
        self._rows: dict[str, dict[str, tuple[tuple[str, ...], Matrix, Matrix]]] = {}

    @property
    def scores_stamp(self) -> Stamp:
        """A value that changes whenever the table of scores does; blocking."""
        return self._scores.stamp

    async def version(
        self, experts: Experts, embedder: Embedder, samples: Sequence[Sample], *, with_scores: bool
    ) -> str:
        """Return a hash of everything that a policy learns from."""

        def work() -> str:
            table = self.table(experts) if with_scores else None
            return data_version(library_version(experts, embedder.name), samples, table)

        return await asyncio.to_thread(work)

    def table(self, experts: Experts, embeddings: Matrix | None = None) -> ScoreTable | None:
        """Return the scores of the base and of these experts; blocking.

        Args:
            embeddings: Embeddings of all scored prompts; None for a table without embeddings.
        """
        if embeddings is None:
            embeddings = np.zeros((0, 1), np.float32)
        return self._scores.table([expert.expert_id for expert in experts], self._scores.samples(), embeddings)

    async def gather(
        self, experts: Experts, embedder: Embedder, progress: Progress = no_progress, *, with_scores: bool
    ) -> FitData:
        """Embed the examples of these experts and, `with_scores`, the scored prompts."""
        bare = await asyncio.to_thread(lambda: {expert.expert_id: bare_texts(expert.examples) for expert in experts})
        scored = [sample.prompt for sample in await asyncio.to_thread(self._scores.samples)]
        texts = {text for expert in experts for text in (*expert.examples, *bare[expert.expert_id])}
        is_first = embedder.name not in self._vectors
        known = self._vectors.setdefault(embedder.name, {})
        if (gone := known.keys() - texts - set(scored)) or is_first:
            for text in gone:
                del known[text]
            await asyncio.to_thread(self._store.keep_only, embedder.name, texts | set(scored))
        wanted = texts | set(scored) if with_scores else texts
        known.update(await asyncio.to_thread(self._store.load, embedder.name, wanted - known.keys(), embedder.dim))
        new = sorted(wanted - known.keys())
        for start in range(0, len(new), EMBED_CHUNK):
            progress(start, len(new))
            chunk = new[start : start + EMBED_CHUNK]
            rows = await embedder.embed([example_view(text) for text in chunk], bulk=True)
            made = dict(zip(chunk, rows, strict=True))
            known.update(made)
            await asyncio.to_thread(self._store.add, embedder.name, made)
        empty: Matrix = np.zeros((0, embedder.dim), np.float32)
        before = self._rows.get(embedder.name, {})

        def rows_of(texts: Sequence[str]) -> Matrix:
            if not texts:
                return empty
            rows = np.stack([known[text] for text in texts])
            rows.flags.writeable = False
            known.update(zip(texts, rows, strict=True))  # keep each vector once, as a view of these rows
            return rows

        def of_expert(expert: LibraryExpert) -> tuple[tuple[str, ...], Matrix, Matrix]:
            there = before.get(expert.expert_id)
            if there is not None and there[0] == expert.examples:
                return there
            return expert.examples, rows_of(expert.examples), rows_of(bare[expert.expert_id])

        def work() -> FitData:
            rows = self._rows[embedder.name] = {expert.expert_id: of_expert(expert) for expert in experts}
            embeddings = {expert: whole for expert, (_, whole, _) in rows.items()}
            bare_rows = {expert: without for expert, (_, _, without) in rows.items()}
            data = fit_data(experts, embeddings, embedder.name, bare_rows, version="gathered")
            return replace(data, scores=self.table(experts, rows_of(scored)) if with_scores else None)

        return await asyncio.to_thread(work)


def as_experts(records: Sequence[AdapterRecord]) -> tuple[LibraryExpert, ...]:
    """Return these versions as routers see them, sorted by id."""
    return tuple(
        LibraryExpert(r.expert_id, r.card.description, tuple(r.card.tags), tuple(r.examples), tuple(r.card.tasks))
        for r in sorted(records, key=lambda record: record.expert_id)
    )


def blocking(embedder: Embedder, loop: asyncio.AbstractEventLoop) -> Callable[[Sequence[str]], Matrix]:
    """Return a blocking function that embeds texts, for a worker thread."""

    def embed(texts: Sequence[str]) -> Matrix:
        rows = np.zeros((len(texts), embedder.dim), np.float32)
        for start in range(0, len(texts), EMBED_CHUNK):
            chunk = [example_view(text) for text in texts[start : start + EMBED_CHUNK]]
            embedding = asyncio.run_coroutine_threadsafe(embedder.embed(chunk, bulk=True), loop)
            rows[start : start + len(chunk)] = embedding.result()
        return rows

    return embed
