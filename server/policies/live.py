"""A fitted policy that can decide now."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adapters_registry.visibility import EVERYBODY, Audience
from routers.base import RouteQuery, Router
from routers.embedders.base import Embedder
from server.policies.definitions import PolicySpec
from server.telemetry.drift import Profile

SLOW_ROUTE_S = 0.001
"""A router that takes longer than this for a decision runs in a worker thread."""


@dataclass(frozen=True, slots=True)
class LivePolicy:
    """A policy that can decide now.

    Attributes:
        version: Version of the data that the router was fitted to.
        expert_ids: Experts that the router can choose.
        known_ids: Experts that the fit considered; a subset policy chooses among fewer.
        embedder: Embeds the policy's prompts.
        slow: Whether a decision takes long enough to be worth a thread.
        stale: Whether the data has changed since, and the method is too costly to fit again automatically.
        provenance: When the policy was fitted, and by which version of the code.
        spec: The definition that was fitted; another gateway may have redefined the policy since.
        fitting: How the policy would choose for prompts like its examples; None if it was not fitted to examples.
        audience: The keys that the policy is for.
    """

    name: str
    router_name: str
    router: Router
    version: str
    embedder: Embedder
    expert_ids: frozenset[str] = frozenset()
    known_ids: frozenset[str] = frozenset()
    slow: bool = False
    stale: bool = False
    provenance: Mapping[str, Any] = field(default_factory=dict)
    spec: PolicySpec | None = None
    fitting: Profile | None = None
    audience: Audience = EVERYBODY

    def describe(self) -> dict[str, Any]:
        """Return the method's card, for people."""
        card = self.router.card
        return {"title": card.title, "paper": card.paper, "selection": card.selection, "cost": card.cost}


def is_slow(router: Router, dim: int, clock: Callable[[], float] = time.perf_counter) -> bool:
    """Measure one decision of a router; blocks.

    Args:
        dim: Dimension of the embedding that the router reads.
        clock: Seconds.
    """
    embedding = np.zeros(dim, np.float32)
    embedding[0] = 1.0
    query = RouteQuery("", embedding)
    router.route(query)  # the first call may build caches
    started = clock()
    router.route(query)
    return clock() - started > SLOW_ROUTE_S
