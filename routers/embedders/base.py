"""The embedder seam: a synchronous `Encoder` (a model) and an asynchronous `Embedder` (what the gateway awaits).

`BatchingEmbedder` turns the one into the other. Both return unit rows, so a dot product is a cosine.
This module contains no model and imports none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from routers.base import Matrix, Vector


@runtime_checkable
class Encoder(Protocol):
    """A sentence encoder: deterministic, called from one thread at a time."""

    name: str
    dim: int

    def encode(self, texts: Sequence[str]) -> Matrix:
        """Embed the texts: shape (len(texts), dim), float32, unit rows in the order of `texts`."""
        ...

    def close(self) -> None:
        """Free the model; encoding afterwards is an error."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """An encoder behind the event loop."""

    name: str
    dim: int

    def cached(self, text: str) -> Vector | None:
        """Return the embedding of a text if it is in the cache, else None; does not wait."""
        ...

    async def embed(self, texts: Sequence[str], *, bulk: bool | None = None) -> Matrix:
        """Embed the texts without blocking the event loop; raises `EmbedderBusy` when the queue is full.

        `bulk` texts, those of a library, are embedded after those of requests and are not cached.
        """
        ...

    async def close(self) -> None:
        """Refuse new work, fail the waiting calls, and free the encoder."""
        ...


def unit_rows(rows: Matrix) -> Matrix:
    """Scale rows, shape (n, dim), to unit length; a zero row becomes the first unit vector rather than NaN."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    dead = ~(norms[:, 0] > 1e-12) | ~np.isfinite(norms[:, 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = np.asarray(rows / norms, dtype=np.float32)
    unit[dead] = 0.0
    unit[dead, 0] = 1.0
    return unit


def clean_text(text: str) -> str:
    """Replace lone surrogates, which JSON allows and UTF-8 does not, by question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
