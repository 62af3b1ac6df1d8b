"""The engine for fitters that search for weights: blocking calls from a worker thread, with results kept on disk.

The loss of a sample under a recipe never changes, because experts are immutable. A fit that was interrupted therefore
asks only for the losses that it had not yet received.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from routers.base import Sample
from routers.errors import NotFittable
from server.engine.asking import ask
from server.engine.errors import EngineFault
from server.engine.losses import counting_fields, read_losses, scoring_fields
from server.engine.pool import EnginePool
from server.engine.recipes import Base, Recipe, mix_of
from server.engine.result_cache import ResultCache, key_of
from server.errors import GatewayError

MAX_PARALLEL = 8


class EngineLosses:
    """Computes losses of samples under weighted experts with the engine; implements `routers.base.Losses`.

    Args:
        pool: The engine.
        loop: The event loop of the pool.
        cache: File with the results of earlier calls.
        base: Name of the base model; part of every result's key.
    """

    def __init__(self, pool: EnginePool, loop: asyncio.AbstractEventLoop, cache: Path, base: str) -> None:
        self._pool = pool
        self._loop = loop
        self._cache = cache
        self._base = base

    def __call__(
        self, weights: Mapping[str, float], samples: Sequence[Sample], formula: Literal["exact", "ab"] = "exact"
    ) -> NDArray[np.float64]:
        """Return the mean cross-entropy of each sample's answer; raises `NotFittable` if the engine fails."""
        try:
            recipe: Recipe = mix_of(weights, "ab" if formula == "ab" else "output")
        except ValueError:  # all weights are zero
            recipe = Base()
        with ResultCache(self._cache) as cache:
            keys = [self._key(recipe, sample) for sample in samples]
            known = {key: found for key in keys if (found := cache.get(key)) is not None}
            missing = [row for row, key in enumerate(keys) if key not in known]
            if missing:
                asked = asyncio.run_coroutine_threadsafe(
                    self._ask_all(recipe, [samples[row] for row in missing]), self._loop
                )
                for row, loss in zip(missing, asked.result(), strict=True):
                    known[keys[row]] = {"loss": loss}
                    cache.put(keys[row], known[keys[row]])
        return np.array([known[key]["loss"] for key in keys])

    def _key(self, recipe: Recipe, sample: Sample) -> str:
        return key_of("loss", self._base, str(recipe), sample.prompt, sample.answer)

    async def _ask_all(self, recipe: Recipe, samples: Sequence[Sample]) -> list[float]:
        permits = asyncio.Semaphore(MAX_PARALLEL)

        async def one(sample: Sample) -> float:
            async with permits:
                return await self._ask(recipe, sample)

        return list(await asyncio.gather(*(one(sample) for sample in samples)))

    async def _ask(self, recipe: Recipe, sample: Sample) -> float:
        request_id = f"fit-{uuid.uuid4().hex}"
        try:
            counted = await ask(self._pool, "/tokenize", counting_fields(sample), Base(), request_id)
            fields = scoring_fields(sample, with_entropy=False)
            answer = await ask(self._pool, "/v1/chat/completions", fields, recipe, request_id)
            return read_losses(answer, int(counted["count"])).loss
        except (GatewayError, EngineFault, KeyError, ValueError) as error:
            raise NotFittable(f"the engine cannot score {recipe}: {error}") from error
