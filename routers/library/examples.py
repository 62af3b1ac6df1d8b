"""The library's examples as methods learn from them: all together, without duplicates, with and without template.

Shapes: n examples of all experts together, d dimensions, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from routers.base import FitData, Matrix
from routers.errors import NotFittable
from routers.maths.even_sample import evenly_spaced
from routers.text.templates import bare_texts


def _no_embedder(texts: Sequence[str]) -> Matrix:
    raise NotFittable("this method embeds texts of its own, but there is no embedder (FitData.embed)")


@dataclass(frozen=True, slots=True)
class Examples:
    """The examples of all experts together.

    Attributes:
        experts: Ids of all experts, sorted, including those without an example.
        texts: The examples, without duplicates within an expert.
        embeddings: Embeddings of the examples, shape (n, d), float32, unit rows.
        owner: Expert of each example, shape (n,), as an index into `experts`.
        bare_texts: The examples without their template (`routers.text.templates`), for calibration.
        bare_embeddings: Embeddings of `bare_texts`, shape (n, d), float32, unit rows.
        embed: Embeds k further texts, shape (k, d); blocking.
    """

    experts: tuple[str, ...]
    texts: tuple[str, ...]
    embeddings: Matrix
    owner: NDArray[np.int32]
    bare_texts: tuple[str, ...]
    bare_embeddings: Matrix
    embed: Callable[[Sequence[str]], Matrix] = _no_embedder

    def take(self, rows: NDArray[np.int64]) -> Examples:
        """Return the examples of these rows; the experts stay the same."""
        if len(rows) == len(self.owner) and bool((rows == np.arange(len(rows))).all()):
            return self
        chosen = rows.tolist()
        return replace(
            self,
            texts=tuple(self.texts[row] for row in chosen),
            embeddings=self.embeddings[rows],
            owner=self.owner[rows],
            bare_texts=tuple(self.bare_texts[row] for row in chosen),
            bare_embeddings=self.bare_embeddings[rows],
        )

    def mean_of_experts(self) -> NDArray[np.float32]:
        """Return the mean of each expert's rows, shape (E, d); NaN for an expert without an example."""
        sums = np.zeros((len(self.experts), self.embeddings.shape[1]), np.float64)
        there, starts = np.unique(np.sort(self.owner), return_index=True)
        if len(there):
            by_expert = self.embeddings[np.argsort(self.owner, kind="stable")]
            sums[there] = np.add.reduceat(by_expert, starts, axis=0, dtype=np.float64)
        counts = np.bincount(self.owner, minlength=len(self.experts))
        with np.errstate(invalid="ignore"):
            return np.asarray(sums / counts[:, None], np.float32)


def examples_of(data: FitData) -> Examples:
    """Collect a library's examples; raises `NotFittable` if some are not embedded."""
    experts = sorted(data.experts, key=lambda expert: expert.expert_id)
    texts: list[str] = []
    owner: list[int] = []
    rows: list[Matrix] = []
    bare: list[str] = []
    bare_rows: list[Matrix] = []
    for number, expert in enumerate(experts):
        if not expert.examples:
            continue
        embedded = data.embeddings.get(expert.expert_id)
        if embedded is None or len(embedded) != len(expert.examples):
            raise NotFittable(f"the examples of {expert.expert_id} are not embedded")
        blocks = [np.asarray(each, np.float32) for each in (embedded, data.bare.get(expert.expert_id, embedded))]
        whole, without = expert.examples, bare_texts(expert.examples)
        if len(set(whole)) < len(whole):
            kept = sorted({text: row for row, text in reversed(list(enumerate(whole)))}.values())
            blocks = [block[kept] for block in blocks]
            whole, without = tuple(whole[row] for row in kept), tuple(without[row] for row in kept)
        texts += whole
        bare += without
        owner += [number] * len(whole)
        rows.append(blocks[0])
        bare_rows.append(blocks[1])
    dim = next((block.shape[1] for block in rows), 1)
    nothing = np.zeros((0, dim), np.float32)
    return Examples(
        tuple(expert.expert_id for expert in experts),
        tuple(texts),
        np.concatenate(rows) if rows else nothing,
        np.array(owner, np.int32),
        tuple(bare),
        np.concatenate(bare_rows) if bare_rows else nothing,
        data.embed or _no_embedder,
    )


def evenly(examples: Examples, max_each: int) -> NDArray[np.int64]:
    """Return rows of up to `max_each` examples of each expert, evenly spaced."""
    rows = [
        own if len(own) <= max_each else own[evenly_spaced(len(own), max_each)]
        for _, own in rows_by_expert(examples.owner)
    ]
    return np.concatenate(rows) if rows else np.empty(0, np.int64)


def rows_by_expert(owner: NDArray[np.int32]) -> list[tuple[int, NDArray[np.int64]]]:
    """Return the experts that have examples, each with its rows."""
    order = np.argsort(owner, kind="stable")
    there, starts = np.unique(owner[order], return_index=True)
    return list(zip(there.tolist(), np.split(order, starts[1:]), strict=True)) if len(there) else []
