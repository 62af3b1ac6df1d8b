"""An embedder that needs no model."""

from collections.abc import AsyncIterator

import pytest

from routers.embedders.batching import BatchingEmbedder
from routers.embedders.hashing import HashingEncoder


@pytest.fixture
async def embedder() -> AsyncIterator[BatchingEmbedder]:
    opened = BatchingEmbedder(HashingEncoder())
    yield opened
    await opened.close()
