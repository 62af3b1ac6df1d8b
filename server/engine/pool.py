"""The pool: which replica of the engine gets a request, and what happens when one fails.

Affinity first, load second: among ready replicas those where the recipe's expert is in use already are
preferred, unless they are much busier; then the one with the fewest of our requests under way. A replica that
cannot be reached is put aside until its health check succeeds, and the request goes to the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Sequence

import structlog

from server.engine.base import Engine, EngineHealth, EngineRequest, EngineResponse, Residency
from server.engine.errors import EngineUnreachable
from server.engine.recipes import Base, Recipe, Single, experts_of
from server.errors import BadRequest, EngineLost, Unavailable
from server.telemetry.metrics import Metrics

POLL_READY_S = 5.0
POLL_UNREADY_S = 0.5
AFFINITY_SLACK = 8
"""A replica that has the expert may have this many more requests than the least busy one and is still preferred."""

log = structlog.get_logger(__name__)


class Replica:
    """One engine, and what the pool knows of it."""

    def __init__(self, name: str, engine: Engine) -> None:
        self.name = name
        self.engine = engine
        self.health = EngineHealth(False, "not asked yet")
        self.residency = Residency()
        self.num_in_flight = 0
        self.experts: Counter[str] = Counter()
        self.doubted = asyncio.Event()
        """Set when a request could not reach it: it is asked for its health at once."""

    def begin(self, recipe: Recipe) -> None:
        """A request with this recipe is under way."""
        self.num_in_flight += 1
        for expert in experts_of(recipe):
            self.experts[expert] += 1

    def end(self, recipe: Recipe) -> None:
        """It has ended."""
        self.num_in_flight -= 1
        for expert in experts_of(recipe):
            self.experts[expert] -= 1
            if not self.experts[expert]:
                del self.experts[expert]

    def can_execute(self, recipe: Recipe) -> bool:
        """Whether the replica understands it: a stock vLLM serves single experts, the plugin everything."""
        return isinstance(recipe, Base | Single) or self.residency.has_plugin


class PooledResponse:
    """An engine's answer that counts as in flight until it is closed."""

    def __init__(self, response: EngineResponse, replica: Replica, recipe: Recipe) -> None:
        self._replica: Replica | None = replica
        self._recipe = recipe
        self.inner = response

    def close(self) -> None:
        """End the answer; may be called twice."""
        if self._replica is not None:
            self._replica.end(self._recipe)
            self._replica = None
            self.inner.close()


class EnginePool:
    """All replicas of the engine.

    Args:
        engines: Name and engine of each.
        metrics: Where their state is shown.
    """

    def __init__(self, engines: Sequence[tuple[str, Engine]], metrics: Metrics) -> None:
        self._metrics = metrics
        self.replicas = [Replica(name, engine) for name, engine in engines]
        self._pollers: list[asyncio.Task[None]] = []
        self.on_ready: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Begin to poll the replicas."""
        self._pollers = [asyncio.create_task(self._poll(replica)) for replica in self.replicas]

    async def close(self) -> None:
        """Stop polling."""
        for task in self._pollers:
            task.cancel()
        await asyncio.gather(*self._pollers, return_exceptions=True)

    @property
    def ready(self) -> bool:
        """Whether any replica takes requests."""
        return any(replica.health.ready for replica in self.replicas)

    def describe(self) -> str:
        """Why the pool is not ready, for people."""
        return "; ".join(f"{r.name}: {r.health.detail or 'ready'}" for r in self.replicas)

    def is_resident(self, expert_id: str) -> bool:
        """Whether a ready replica has the expert in a slot, as it said last."""
        return any(r.health.ready and expert_id in r.residency.experts for r in self.replicas)

    def num_using(self, expert_id: str) -> int:
        """Requests under way that use an expert."""
        return sum(replica.experts[expert_id] for replica in self.replicas)

    async def forward(self, request: EngineRequest) -> PooledResponse:
        """Hand a request to the best replica, to the next one if that cannot be reached.

        Raises:
            Unavailable: No replica is ready.
            BadRequest: None of the ready ones can execute the recipe.
            EngineLost: Every ready replica failed before its first byte.
        """
        tried: set[str] = set()
        while True:
            replica = self._pick(request.recipe, tried)
            if replica is None:
                if tried:
                    raise EngineLost("The engine failed before it answered; nothing was generated. Try again.")
                raise Unavailable(f"No engine is ready ({self.describe()}).", retry_after_s=5)
            tried.add(replica.name)
            replica.begin(request.recipe)
            if request.trace is not None:
                request.trace.attempt(replica.name)
            try:
                response = await replica.engine.forward(request)
            except EngineUnreachable as error:
                replica.end(request.recipe)
                log.warning("engine unreachable", replica=replica.name, error=str(error))
                self._set_health(replica, EngineHealth(False, "not reachable"))
                replica.doubted.set()
            except BaseException:
                replica.end(request.recipe)
                raise
            else:
                return PooledResponse(response, replica, request.recipe)

    def _pick(self, recipe: Recipe, tried: set[str]) -> Replica | None:
        ready = [r for r in self.replicas if r.health.ready and r.name not in tried]
        if not ready:
            return None
        able = [r for r in ready if r.can_execute(recipe)]
        if not able:
            raise BadRequest(
                "The engine is a vLLM without Moergate's plugin, which executes one expert a request. "
                "Merge a mix into an ordinary adapter with 'moergate compose', and ask for that by its name.",
                param="model",
            )
        if len(able) == 1:
            return able[0]
        least = min(r.num_in_flight for r in able)
        experts = frozenset(experts_of(recipe))

        def rank(replica: Replica) -> tuple[int, int]:
            num_near = len(experts & replica.residency.experts)
            near = num_near if replica.num_in_flight <= least + AFFINITY_SLACK else 0
            return (-near, replica.num_in_flight)

        return min(able, key=rank)

    async def _poll(self, replica: Replica) -> None:
        while True:
            replica.doubted.clear()
            health = await replica.engine.health()
            if replica.health.ready and not health.ready:  # one slow answer is no reason to refuse everybody
                health = await replica.engine.health()
            replica.residency = await replica.engine.residency() if health.ready else Residency()
            self._set_health(replica, health)
            gauges = self._metrics.engine
            gauges.running.labels(replica.name).set(replica.residency.num_running)
            gauges.waiting.labels(replica.name).set(replica.residency.num_waiting)
            gauges.experts.labels(replica.name).set(len(replica.residency.experts))
            with contextlib.suppress(TimeoutError):
                pause_s = POLL_READY_S if replica.health.ready else POLL_UNREADY_S
                await asyncio.wait_for(replica.doubted.wait(), pause_s)

    def _set_health(self, replica: Replica, health: EngineHealth) -> None:
        if health.ready != replica.health.ready:
            log.info("engine ready" if health.ready else "engine not ready", replica=replica.name, detail=health.detail)
            if health.ready:
                self.on_ready()
        replica.health = health
        self._metrics.engine.up.labels(replica.name).set(health.ready)
