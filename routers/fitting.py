"""From a library to a fitted policy: the library's content hash, its data for fitters, and one call that fits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from routers.base import Artefact, FitData, LibraryExpert, Matrix, Progress, RouterConfig, no_progress
from routers.errors import NotFittable
from routers.registry import router_class


def library_version(experts: Iterable[LibraryExpert], embedder: str) -> str:
    """SHA-256 over everything that routers learn from, in hex; the order of the experts does not matter."""
    digest = hashlib.sha256()

    def add(*parts: str) -> None:
        for part in parts:
            encoded = part.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)

    add("moergate-library-2", embedder)
    for expert in sorted(experts, key=lambda e: e.expert_id):
        add(expert.expert_id, expert.description, str(len(expert.tags)), *expert.tags)
        add(str(len(expert.examples)), *expert.examples)
    return digest.hexdigest()


def fit_data(
    experts: Iterable[LibraryExpert],
    embeddings: Mapping[str, Matrix],
    embedder: str,
    bare: Mapping[str, Matrix] | None = None,
) -> FitData:
    """The library as fitters take it; raises `NotFittable` if an expert's examples are not embedded row by row."""
    ordered = tuple(sorted(experts, key=lambda e: e.expert_id))
    for expert in ordered:
        num_rows = len(embeddings[expert.expert_id]) if expert.expert_id in embeddings else 0
        if num_rows != len(expert.examples):
            raise NotFittable(f"{expert.expert_id} has {len(expert.examples)} examples but {num_rows} embeddings")
        if bare and expert.expert_id in bare and len(bare[expert.expert_id]) != num_rows:
            raise NotFittable(f"{expert.expert_id} has {num_rows} examples but another number of bare ones")
    return FitData(ordered, dict(embeddings), embedder, library_version(ordered, embedder), dict(bare or {}))


def fit_policy(name: str, config: RouterConfig, data: FitData, progress: Progress = no_progress) -> Artefact:
    """Fit router `name`; blocking, for a worker thread. Raises `UnknownRouter` or `NotFittable`."""
    return router_class(name).fit(config, data, progress)
