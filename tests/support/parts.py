"""Builders of the data path's parts: real ones over a small library on disk, and an engine in memory."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import orjson

from adapters_registry.key_limits import KeyLimits
from adapters_registry.keys import new_key
from adapters_registry.library import Library
from adapters_registry.records import AdapterRecord
from routers.artefacts import ArtefactStore
from routers.base import Artefact, Decision, FitData, MethodCard, Progress, RouteQuery, RouterConfig
from routers.embedders.batching import BatchingEmbedder
from routers.embedders.hashing import HashingEncoder
from server.access.admission import Admission
from server.access.auth import ANONYMOUS, Authenticator, Principal
from server.access.entry import Entry, Lease
from server.access.key_limits import Limiter
from server.endpoints import CHAT, Endpoint
from server.engine.base import EngineHealth, EngineRequest, Residency
from server.engine.errors import EngineFault
from server.engine.pool import EnginePool
from server.engine.recipes import Base, Recipe
from server.journal.decision_log import DecisionLog
from server.planning.catalog import Catalog, Target
from server.planning.conversations import ConversationMemory
from server.planning.plan import Plan
from server.planning.planner import Planner
from server.planning.shadow import Shadow
from server.policies.definitions import PolicyStore
from server.policies.embedders import Embedders
from server.policies.fit_data import PolicyData
from server.policies.fitter import Fitter
from server.policies.live import LivePolicy
from server.policies.scores import ScoreStore
from server.policies.vectors import VectorStore
from server.request.answer import Limits
from server.request.pipeline import Call, Pipeline
from server.request.recorder import ForwardedRequest, Recorder
from server.telemetry.drift import RecentDecisions
from server.telemetry.logs import AccessLog
from server.telemetry.metrics import Metrics
from server.telemetry.prices import Price

JSON: Mapping[str, str] = {"content-type": "application/json"}
EVENTS: Mapping[str, str] = {"content-type": "text/event-stream; charset=utf-8"}
LIMITS = Limits(first_token_s=5.0, total_s=5.0)


@dataclass
class MemoryEngine:
    """An engine in memory, which is its own response.

    Attributes:
        payload: Parts of the answer.
        refuses: Raised instead of an answer.
        breaks: Raised after the last part.
        hold: Until it is set, no answer begins.
        hold_first, hold_parts: Until it is set, the first part or a later part is not sent.
    """

    payload: Sequence[bytes] = (b'{"model":"base"}',)
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)
    model: str = "base"
    refuses: Exception | None = None
    breaks: EngineFault | None = None
    hold: asyncio.Event | None = None
    hold_first: asyncio.Event | None = None
    hold_parts: asyncio.Event | None = None
    requests: list[EngineRequest] = field(default_factory=list)
    num_closed: int = 0

    async def forward(self, request: EngineRequest) -> MemoryEngine:
        self.requests.append(request)
        if self.hold is not None:
            await self.hold.wait()
        if self.refuses is not None:
            raise self.refuses
        return self

    async def chunks(self) -> AsyncIterator[bytes]:
        for number, part in enumerate(self.payload):
            hold = self.hold_parts if number else self.hold_first
            if hold is not None:
                await hold.wait()
            yield part
        if self.breaks is not None:
            raise self.breaks

    async def read(self) -> bytes:
        return b"".join([part async for part in self.chunks()])

    def close(self) -> None:
        self.num_closed += 1

    async def health(self) -> EngineHealth:
        return EngineHealth(True)

    async def residency(self) -> Residency:
        return Residency(has_plugin=True)


def pool_over(*engines: MemoryEngine, metrics: Metrics | None = None) -> EnginePool:
    """A pool whose replicas are ready, without polling them."""
    pool = EnginePool([(f"r{number}", engine) for number, engine in enumerate(engines)], metrics or metrics_with())
    for replica in pool.replicas:
        replica.health = EngineHealth(True)
        replica.residency = Residency(has_plugin=True)
    return pool


def metrics_with(**prices: Price) -> Metrics:
    """Metrics of a gateway with these prices."""
    return Metrics(max_experts=9, prices=prices)


class ChoosingRouter:
    """A router that decides by a function, and keeps what it was asked."""

    card: ClassVar[MethodCard] = MethodCard(
        name="choosing",
        title="",
        paper="",
        expert_training="",
        expert_data="",
        routing_dataset="",
        input_granularity="example",
        depth="model",
        selection="top-1",
        aggregation="none",
        generalization="",
        user_dataset="",
        needs_embedding=False,
    )
    config_class: ClassVar[type[RouterConfig]] = RouterConfig

    def __init__(self, choose: Callable[[RouteQuery], Decision]) -> None:
        self._choose = choose
        self.queries: list[RouteQuery] = []

    @classmethod
    def fit(cls, config: Any, data: FitData, progress: Progress) -> Artefact:
        return Artefact("choosing", {}, {}, data.version, data.embedder)

    @classmethod
    def load(cls, config: Any, artefact: Artefact) -> ChoosingRouter:
        return cls(lambda _query: Decision((), 0.0))

    def route(self, query: RouteQuery) -> Decision:
        self.queries.append(query)
        return self._choose(query)


def policy_of(router: ChoosingRouter, *experts: AdapterRecord, name: str = "auto") -> LivePolicy:
    """A policy that decides with this router among these experts."""
    ids = frozenset(expert.expert_id for expert in experts)
    return LivePolicy(name, "choosing", router, "1", BatchingEmbedder(HashingEncoder()), ids)


def catalog_of(*experts: AdapterRecord, policy: LivePolicy | None = None) -> Catalog:
    """A catalog of these active experts and at most one policy."""
    policies = {policy.name: policy} if policy else {}
    return Catalog(("base",), {expert.expert_id: expert for expert in experts}, policies=policies)


def planner_over(pool: EnginePool, metrics: Metrics, memory: ConversationMemory | None = None) -> Planner:
    """A planner without versions in the shadow."""
    unused = Path("/nonexistent")  # only a version in the shadow would have it opened
    embedders = Embedders(BatchingEmbedder(HashingEncoder()), lambda _name: HashingEncoder(), 1)

    def data() -> PolicyData:
        return PolicyData(ScoreStore(unused), VectorStore(unused / "vectors.sqlite"))

    shadow = Shadow(Fitter(ArtefactStore(unused)), data, PolicyStore(unused).alone, embedders, metrics)
    return Planner(pool, metrics, memory or ConversationMemory(), shadow)


@dataclass
class Shown:
    """Shows one catalog, as the library's watcher does."""

    catalog: Catalog


@dataclass
class DataPath:
    """A pipeline and the parts that it uses."""

    pipeline: Pipeline
    library: Library
    engine: MemoryEngine
    pool: EnginePool
    metrics: Metrics
    admission: Admission
    authenticator: Authenticator
    limiter: Limiter
    decisions: DecisionLog
    access_log: AccessLog
    lines: io.StringIO

    def logged(self) -> list[dict[str, Any]]:
        """The lines of the access log."""
        self.access_log.flush()
        return [orjson.loads(line) for line in self.lines.getvalue().splitlines()]

    def sample(self, name: str, **labels: str) -> float | None:
        """A metric's value."""
        return self.metrics.registry.get_sample_value(name, labels)

    async def key(self, name: str = "app", **options: Any) -> str:
        """Create a key and return its plaintext."""
        record, plaintext = new_key(name, **options)
        await self.library.keys.add(record)
        self.authenticator.forget()
        return plaintext


@asynccontextmanager
async def data_path(
    home: Path,
    catalog: Catalog | None = None,
    engine: MemoryEngine | None = None,
    *,
    max_active: int = 4,
    max_queue: int = 4,
    queue_timeout_s: float = 5.0,
    limits: Limits = LIMITS,
    count_stream_tokens: bool = False,
    prices: Mapping[str, Price] | None = None,
) -> AsyncIterator[DataPath]:
    """A pipeline over a database in `home` and an engine in memory."""
    library = await Library.open(home)
    engine = engine or MemoryEngine()
    metrics = metrics_with(**(prices or {}))
    pool = pool_over(engine, metrics=metrics)
    authenticator = Authenticator(library.keys)
    limiter, admission = Limiter(library.usage, metrics), Admission(max_active, max_queue, queue_timeout_s)
    decisions = DecisionLog(library.decisions, RecentDecisions(), metrics, level="decisions")
    lines = io.StringIO()
    access_log = AccessLog("json", lines)
    pipeline = Pipeline(
        authenticator=authenticator,
        entry=Entry(limiter, admission),
        library=Shown(catalog or catalog_of()),
        planner=planner_over(pool, metrics),
        pool=pool,
        recorder=Recorder(metrics, decisions, access_log),
        metrics=metrics,
        limits=limits,
        count_stream_tokens=count_stream_tokens,
    )
    try:
        yield DataPath(
            pipeline, library, engine, pool, metrics, admission, authenticator, limiter, decisions, access_log, lines
        )
    finally:
        await limiter.close()
        await library.close()


def call_of(
    body: Mapping[str, Any] | bytes, endpoint: Endpoint = CHAT, *, key: str | None = None, request_id: str = "r1"
) -> Call:
    """A request from this machine with this body."""
    raw = body if isinstance(body, bytes) else orjson.dumps(body)

    async def read() -> bytes:
        return raw

    headers = {"host": "localhost"} | ({"authorization": f"Bearer {key}"} if key else {})
    return Call(endpoint, headers, read, request_id, time.perf_counter())


def plan_for(recipe: Recipe | None = None, *, asked: str = "base", **more: Any) -> Plan:
    """A plan for a target that was asked for by name."""
    recipe = recipe or Base()
    return Plan(Target("base" if isinstance(recipe, Base) else "expert", asked, recipe), recipe, **more)


def forwarded(
    plan: Plan | None = None,
    endpoint: Endpoint = CHAT,
    *,
    principal: Principal = ANONYMOUS,
    hide_usage: bool = False,
    overhead_s: float = 0.001,
) -> ForwardedRequest:
    """A request that has just been forwarded."""
    now = time.perf_counter()
    return ForwardedRequest("r1", endpoint, now, overhead_s, principal, plan or plan_for(), hide_usage)


async def lease_of(admission: Admission) -> Lease:
    """A lease of a key without limits."""
    await admission.acquire()
    return Lease(admission)


def confined(limits: KeyLimits) -> Principal:
    """The principal of a key with limits."""
    return Principal("k1", frozenset({"infer"}), limits=limits, name="app")
