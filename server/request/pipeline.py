"""The data path: what happens to a request from its headers to the engine's answer, top to bottom.

1. authenticate: API key → principal
2. admit: a lease within the limits of the key and of the gateway, or 429
3. resolve ``model``: base, expert or policy → target
4. if a policy: view → embedding → decision
5. decision → recipe
6. replica → forward the body, unchanged except for ``model``; the answer streams back through `server.request.answer`
7. record: when the answer ends, `server.request.recorder` writes usage, metrics, decision log, trace and access log

The web framework stays outside: a request comes in as a `Call`, and goes out as an `Answer` or as a `GatewayError`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from server.access.auth import Authenticator, Principal
from server.access.entry import Entry
from server.endpoints import Endpoint
from server.engine.base import EngineRequest
from server.engine.body import JsonBody, parse_body
from server.engine.pool import EnginePool, PooledResponse
from server.engine.recipes import Base
from server.errors import EngineTimeout
from server.planning.catalog import Catalog
from server.planning.plan import Plan, RoutingRequest
from server.planning.planner import Planner
from server.request.answer import Answer, Limits
from server.request.deadline import Deadline
from server.request.recorder import ForwardedRequest, Recorder
from server.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from server.tracing.request_trace import Trace


@dataclass(frozen=True, slots=True)
class Call:
    """A request as it arrived.

    Attributes:
        endpoint: The endpoint that was called, or that an explanation is about.
        headers: HTTP headers; names are in lower case.
        read_body: Reads the body, once; raises BodyTooLarge.
        request_id: The caller's id for the request if it is well-formed, else a new id.
        received_at: ``time.perf_counter()`` at its arrival.
        trace: The request's trace, if tracing is on.
    """

    endpoint: Endpoint
    headers: Mapping[str, str]
    read_body: Callable[[], Awaitable[bytes]]
    request_id: str
    received_at: float
    trace: Trace | None = None

    def reached(self, step: Literal["auth", "read", "queue", "plan"]) -> float:
        """Return ``time.perf_counter()`` at the end of a step, and note it in the trace."""
        now = time.perf_counter()
        if self.trace is not None:
            self.trace.reached[step] = now
        return now


class CatalogSource(Protocol):
    """Where the current catalog comes from."""

    @property
    def catalog(self) -> Catalog:
        """The newest snapshot of the library."""
        ...


class Pipeline:
    """Carries requests from their headers to the engine's first byte.

    Args:
        authenticator: Finds the principal behind a key.
        entry: Lets requests in, within the limits of their key and of the gateway.
        library: Has the current catalog.
        planner: Turns targets into plans.
        pool: Forwards requests to a replica of the engine.
        recorder: Records how requests end.
        metrics: Measures the phases before the engine.
        limits: Maximum waits for the engine.
        count_stream_tokens: Whether streams report token counts to the gateway even if the caller asked for none.
    """

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        entry: Entry,
        library: CatalogSource,
        planner: Planner,
        pool: EnginePool,
        recorder: Recorder,
        metrics: Metrics,
        limits: Limits,
        count_stream_tokens: bool,
    ) -> None:
        self._authenticator = authenticator
        self._entry = entry
        self._library = library
        self._planner = planner
        self._pool = pool
        self._recorder = recorder
        self._metrics = metrics
        self._limits = limits
        self._count_stream_tokens = count_stream_tokens

    async def run(self, call: Call) -> Answer:
        """Carry a request to the engine and return its answer, which the caller must finish.

        Raises:
            GatewayError: Anything that failed before the engine's first byte.
        """
        principal = await self._authenticator.authorise(call.headers, "infer")
        authenticated = call.reached("auth")
        body = parse_body(await call.read_body())
        read = call.reached("read")
        endpoint, trace = call.endpoint, call.trace
        if trace is not None:
            trace.note_request(principal.key_id, body)
        with await self._entry.enter(principal, body, generates=endpoint.generates) as lease:
            admitted = call.reached("queue")
            plan = await self._plan(call, body, principal)
            if trace is not None:
                trace.plan = plan
            counts = self._count_stream_tokens or lease.counts_tokens
            hide_usage = counts and endpoint.takes_stream_options and body.wants_no_usage
            sent = body.with_usage() if hide_usage else body
            # Reading the body takes as long as the caller takes to send it.
            overhead_s = call.reached("plan") - call.received_at - (read - authenticated)
            self._observe(authenticated - call.received_at, admitted - read, plan)
            response, deadline = await self._forward(
                EngineRequest(endpoint.path, sent, plan.recipe, call.request_id, trace), call.received_at
            )
        return Answer(
            response=response,
            deadline=deadline,
            request=ForwardedRequest(
                call.request_id, endpoint, call.received_at, overhead_s, principal, plan, hide_usage, trace
            ),
            lease=lease,
            recorder=self._recorder,
            limits=self._limits,
        )

    async def explain(self, call: Call) -> tuple[Plan, dict[str, float]]:
        """Decide as `run` would, without generating: the plan, and the duration of each phase in milliseconds.

        An explanation is not counted as a decision, and does not affect later requests.
        """
        principal = await self._authenticator.authorise(call.headers, "infer")
        authenticated = time.perf_counter()
        body = parse_body(await call.read_body())
        plan = await self._plan(call, body, principal, explains=True)
        times_ms = {
            "auth": (authenticated - call.received_at) * 1000,
            "embed": plan.embed_s * 1000,
            "route": plan.route_s * 1000,
        }
        return plan, times_ms

    async def _plan(self, call: Call, body: JsonBody, principal: Principal, *, explains: bool = False) -> Plan:
        catalog = self._library.catalog
        target = catalog.resolve(body.model, principal)
        if not call.endpoint.is_routed:
            return Plan(target, Base())
        request = RoutingRequest(target, call.endpoint, body, catalog, principal, call.request_id)
        return await (self._planner.explain(request) if explains else self._planner.plan(request))

    async def _forward(self, request: EngineRequest, received_at: float) -> tuple[PooledResponse, Deadline]:
        """Forward a request to the pool; the deadline keeps running for the answer."""
        limit_s = self._limits.first_token_s if request.body.stream else self._limits.total_s
        deadline = Deadline(received_at + limit_s - time.perf_counter())
        try:
            return await self._pool.forward(request), deadline
        except BaseException as error:
            deadline.end()
            if isinstance(error, asyncio.CancelledError) and deadline.claims():
                raise EngineTimeout(f"The engine did not start to answer within {limit_s:g} s.") from None
            raise

    def _observe(self, auth_s: float, queue_s: float, plan: Plan) -> None:
        phases = self._metrics.phases
        phases["auth"].observe(auth_s)
        phases["queue"].observe(queue_s)
        if plan.decision is not None:
            phases["embed"].observe(plan.embed_s)
            phases["route"].observe(plan.route_s)
