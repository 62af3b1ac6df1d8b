"""Live policies: fits routers to the library and swaps them in without dropping a request.

When the library changes, each policy is fitted anew in a worker thread, from embeddings of which only the new ones are
computed; the result is published as an artefact and then replaces the old router in one assignment. An artefact of an
earlier start is used again if it was fitted to the same library. A policy whose fit fails keeps its old router and is
shown as stale.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import structlog

from adapters_registry.records import AdapterRecord
from routers.artefacts import ArtefactStore
from routers.base import Artefact, FitData, LibraryExpert, Matrix, RouteQuery, Router, RouterConfig, no_progress
from routers.embedders.base import Embedder
from routers.errors import BadArtefact, RouterError
from routers.fitting import fit_data, library_version
from routers.registry import make_config, router_class
from routers.templates import bare_texts
from routers.views import example_view
from server.metrics import Metrics
from server.settings import PolicySettings

SLOW_ROUTE_S = 0.001
"""A router that takes longer than this for a decision is run in a worker thread."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LivePolicy:
    """A policy that can decide now.

    Attributes:
        expert_ids: The experts that the router was fitted to.
        slow: Whether a decision takes long enough to be worth a thread.
    """

    name: str
    router_name: str
    router: Router
    library_version: str
    expert_ids: frozenset[str] = frozenset()
    slow: bool = False

    def describe(self) -> dict[str, Any]:
        """The method's card, for people."""
        card = self.router.card
        return {"title": card.title, "paper": card.paper, "selection": card.selection, "cost": card.cost}


class PolicyManager:
    """Keeps every configured policy fitted to the library.

    Args:
        configured: Policies by name.
        embedder: For the library's examples.
        artefacts: Where fitted artefacts are kept.
        metrics: Shows stale policies.
    """

    def __init__(
        self,
        configured: Mapping[str, PolicySettings],
        embedder: Embedder,
        artefacts: ArtefactStore,
        metrics: Metrics,
    ) -> None:
        self._embedder = embedder
        self._artefacts = artefacts
        self._metrics = metrics
        self._configs: dict[str, tuple[type[Router], RouterConfig]] = {}
        self._router_names = {name: policy.router for name, policy in configured.items()}
        for name, policy in configured.items():
            self._configs[name] = (router_class(policy.router), make_config(policy.router, policy.options))
        self._vectors: dict[str, np.ndarray[Any, np.dtype[np.float32]]] = {}
        self._live: dict[str, LivePolicy] = {}

    async def refresh(self, records: Sequence[AdapterRecord]) -> dict[str, LivePolicy]:
        """Fit all policies to these experts; never raises, keeps what it had where a fit fails."""
        experts = tuple(
            LibraryExpert(r.expert_id, r.card.description, tuple(r.card.tags), tuple(r.examples))
            for r in sorted(records, key=lambda record: record.expert_id)
        )
        version = library_version(experts, self._embedder.name)
        data: FitData | None = None
        for name in self._configs:
            if name in self._live and self._live[name].library_version == version:
                continue
            try:
                router = await asyncio.to_thread(self._load_published, name, version)
                if router is None:
                    data = data or await self._fit_data(experts)
                    router = await asyncio.to_thread(self._fit, name, data)
                slow = await asyncio.to_thread(self._is_slow, router)
            except Exception as error:
                log.exception("policy not fitted", policy=name, error=str(error))
                self._metrics.policy_stale.labels(name).set(1)
                continue
            ids = frozenset(expert.expert_id for expert in experts)
            self._live[name] = LivePolicy(name, self._router_names[name], router, version, ids, slow)
            self._metrics.policy_stale.labels(name).set(0)
        return dict(self._live)

    @property
    def missing(self) -> list[str]:
        """Configured policies that cannot decide yet."""
        return [name for name in self._configs if name not in self._live]

    def _load_published(self, name: str, version: str) -> Router | None:
        kind, config = self._configs[name]
        try:
            artefact = self._artefacts.current(name)
            if artefact is None or not self._fits(artefact, name, version):
                return None
            return kind.load(config, artefact)
        except (BadArtefact, RouterError) as error:
            log.warning("stored policy is damaged, fitting it again", policy=name, error=str(error))
            return None

    def _fits(self, artefact: Artefact, name: str, version: str) -> bool:
        same_options = artefact.data.get("config") == self._configs[name][1].model_dump(mode="json")
        return artefact.router == self._router_names[name] and artefact.library_version == version and same_options

    def _fit(self, name: str, data: FitData) -> Router:
        kind, config = self._configs[name]
        started = time.perf_counter()
        fitted = kind.fit(config, data, no_progress)
        artefact = replace(fitted, data={**fitted.data, "config": config.model_dump(mode="json")})
        self._artefacts.publish(name, artefact)
        router = kind.load(config, artefact)
        took_ms = round((time.perf_counter() - started) * 1000)
        log.info("policy fitted", policy=name, experts=len(data.experts), took_ms=took_ms)
        return router

    def _is_slow(self, router: Router) -> bool:
        embedding = np.zeros(self._embedder.dim, np.float32)
        embedding[0] = 1.0
        query = RouteQuery("", embedding)
        router.route(query)
        started = time.perf_counter()
        router.route(query)
        return time.perf_counter() - started > SLOW_ROUTE_S

    async def _fit_data(self, experts: tuple[LibraryExpert, ...]) -> FitData:
        bare = await asyncio.to_thread(lambda: {expert.expert_id: bare_texts(expert.examples) for expert in experts})
        texts = {text for expert in experts for text in (*expert.examples, *bare[expert.expert_id])}
        new = sorted(texts - self._vectors.keys())
        if new:
            rows = await self._embedder.embed([example_view(text) for text in new])
            self._vectors.update(zip(new, rows, strict=True))
        self._vectors = {text: self._vectors[text] for text in texts}
        empty: Matrix = np.zeros((0, self._embedder.dim), np.float32)

        def rows_of(texts: Sequence[str]) -> Matrix:
            return np.stack([self._vectors[text] for text in texts]) if texts else empty

        embeddings = {expert.expert_id: rows_of(expert.examples) for expert in experts}
        bare_rows = {expert: rows_of(texts) for expert, texts in bare.items()}
        return await asyncio.to_thread(fit_data, experts, embeddings, self._embedder.name, bare_rows)
