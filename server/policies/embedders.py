"""The process's embedders: the gateway's own, and those that single policies ask for, each loaded once when needed."""

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
        default: The gateway's own.
        open_encoder: Loads another one by its name; blocking.
        cache_entries: Embeddings that each other one keeps.
    """

    def __init__(self, default: Embedder, open_encoder: Callable[[str], Encoder], cache_entries: int) -> None:
        self.default = default
        self._open_encoder = open_encoder
        self._cache_entries = cache_entries
        self._others: dict[str, Embedder] = {}
        self._loading = asyncio.Lock()

    async def get(self, name: str | None) -> Embedder:
        """The embedder of that name, or the gateway's own; raises `EmbedderError`."""
        if not name:
            return self.default
        async with self._loading:
            if name not in self._others:
                encoder = await asyncio.to_thread(self._open_encoder, name)
                self._others[name] = BatchingEmbedder(encoder, cache_entries=self._cache_entries)
        return self._others[name]

    async def close(self) -> None:
        """Close all of them."""
        for embedder in (self.default, *self._others.values()):
            await embedder.close()
