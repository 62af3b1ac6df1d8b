"""From a library to a fitted policy: the library's content hash, its data for fitters, and one call that fits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np

from routers.base import (
    Artefact,
    FitData,
    LibraryExpert,
    Matrix,
    MethodCard,
    Need,
    Progress,
    RouterConfig,
    Sample,
    ScoreTable,
    no_progress,
)
from routers.errors import NotFittable
from routers.registry import router_class

LACKING: Mapping[Need, str] = {
    "examples": "no expert has an example prompt",
    "descriptions": "no expert's card has a description",
    "scores": "there is no table of scores",
    "losses": "the table of scores has no losses",
    "samples": "no prompts with answers were given",
    "engine": "no engine can be asked for losses",
}
"""What is missing where a need is not met, in words."""


def library_version(experts: Iterable[LibraryExpert], embedder: str) -> str:
    """SHA-256 over everything that routers learn from, in hex; the order of the experts does not matter."""
    digest = hashlib.sha256()

    def add(*parts: str) -> None:
        for part in parts:
            encoded = part.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)

    add("moergate-library-3", embedder)
    for expert in sorted(experts, key=lambda e: e.expert_id):
        add(expert.expert_id, expert.description, str(len(expert.tags)), *expert.tags)
        add(str(len(expert.tasks)), *expert.tasks)
        add(str(len(expert.examples)), *expert.examples)
    return digest.hexdigest()


def data_version(library: str, samples: Iterable[Sample] = (), table: ScoreTable | None = None) -> str:
    """A library's version together with what else a policy learns from; the library's own where there is nothing."""
    digest = hashlib.sha256(library.encode())
    given = list(samples)
    for sample in given:
        digest.update(repr((sample.prompt, sample.answer, sample.task, sample.metric)).encode("utf-8", "surrogatepass"))
    if table is not None:
        digest.update(repr((table.models, table.samples)).encode("utf-8", "surrogatepass"))
        for values in (table.scores, table.losses, table.prompt_losses, table.entropies):
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest() if given or table is not None else library


def fit_data(
    experts: Iterable[LibraryExpert],
    embeddings: Mapping[str, Matrix],
    embedder: str,
    bare: Mapping[str, Matrix] | None = None,
    version: str | None = None,
) -> FitData:
    """The library as fitters take it; raises `NotFittable` if an expert's examples are not embedded row by row.

    `version` is its `library_version`, for callers who have it already.
    """
    ordered = tuple(sorted(experts, key=lambda e: e.expert_id))
    for expert in ordered:
        num_rows = len(embeddings[expert.expert_id]) if expert.expert_id in embeddings else 0
        if num_rows != len(expert.examples):
            raise NotFittable(f"{expert.expert_id} has {len(expert.examples)} examples but {num_rows} embeddings")
        if bare and expert.expert_id in bare and len(bare[expert.expert_id]) != num_rows:
            raise NotFittable(f"{expert.expert_id} has {num_rows} examples but another number of bare ones")
    return FitData(ordered, dict(embeddings), embedder, version or library_version(ordered, embedder), dict(bare or {}))


def unmet_needs(card: MethodCard, data: FitData) -> dict[Need, str]:
    """Return what a method needs and the data lacks, each with a sentence that says so."""
    table = data.scores
    met = {
        "examples": any(expert.examples for expert in data.experts),
        "descriptions": any(expert.description for expert in data.experts),
        "scores": table is not None,
        "losses": table is not None and bool(np.isfinite(table.losses).any()),
        "samples": bool(data.samples),
        "engine": data.losses is not None,
    }
    sentences: dict[Need, str] = {}
    for need in card.needs:
        if not met[need]:
            sentences[need] = f"Router {card.name!r} learns from {need}, but {LACKING[need]}"
    return sentences


def fit_policy(name: str, config: RouterConfig, data: FitData, progress: Progress = no_progress) -> Artefact:
    """Fit router `name`; blocking, for a worker thread.

    Examples and descriptions may come later: until then a policy abstains.

    Raises:
        UnknownRouter: There is no such method.
        NotFittable: Something else that it needs is missing.
    """
    found = router_class(name)
    for need, sentence in unmet_needs(found.card, data).items():
        if need not in ("examples", "descriptions"):
            raise NotFittable(sentence, need)
    return found.fit(config, data, progress)
