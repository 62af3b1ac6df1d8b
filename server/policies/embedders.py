"""The embedders of this process: the gateway's own, and those of single policies, each loaded when first needed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from routers.embedders.base import Embedder, Encoder
from routers.embedders.batching import BatchingEmbedder

BASE = "base"
"""Name of the embedder that gives the base model's hidden states."""


class Embedders:
    """Embedders by name.

    Args:
        default: The gateway's own embedder.
        open_encoder: Loads the encoder of another embedder by its name; blocking.
        cache_entries: Number of embeddings in the cache of each other embedder.
    """

    def __init__(self, default: Embedder, open_encoder: Callable[[str], Encoder], cache_entries: int) -> None:
        self.default = default
        self._open_encoder = open_encoder
        self._cache_entries = cache_entries
        self._others: dict[str, Embedder] = {}
        self._loading = asyncio.Lock()

    async def get(self, name: str | None) -> Embedder:
        """Return the embedder of this name, or the gateway's own if there is no name; raises `EmbedderError`."""
        if not name:
            return self.default
        async with self._loading:
            if name not in self._others:
                encoder = await asyncio.to_thread(self._open_encoder, name)
                self._others[name] = BatchingEmbedder(encoder, cache_entries=self._cache_entries)
        return self._others[name]

    async def close(self) -> None:
        """Close all embedders."""
        for embedder in (self.default, *self._others.values()):
            await embedder.close()
