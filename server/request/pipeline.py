"""The data path: what happens to a request, from its headers to the engine's answer, top to bottom.

1. authenticate: API key → principal
2. admit: within the key's limits, and a place among the running requests, or 429
3. resolve ``model``: base, expert or policy → target
4. if a policy: view → embedding → decision
5. decision → recipe
6. replica → forward the body, unchanged but for ``model``; the answer streams back through `server.request.answer`
7. record: metrics, access log and decision log, when the answer ends

The web framework stays outside: a request comes in as a `Call`, and goes out as an `Answer` or as a `GatewayError`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from server.access.admission import Admission
from server.access.auth import Authenticator, Principal
from server.access.key_limits import Grant, Limiter
from server.engine.base import EngineRequest
from server.engine.body import JsonBody, parse_body
from server.engine.pool import EnginePool, PooledResponse
from server.engine.recipes import Base
from server.errors import EngineTimeout
from server.experts.watcher import LibraryWatcher
from server.journal.decision_log import DecisionLog
from server.planning.planner import Asked, Plan, Planner
from server.request.answer import Answer, Limits, Origin
from server.request.deadline import Deadline
from server.telemetry.logs import AccessLog
from server.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from server.tracing.request_trace import Trace

UNROUTED = frozenset({"/tokenize", "/detokenize"})
"""Endpoints for which every expert is the same as the base, so that no policy is asked."""


GENERATING = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})
"""Endpoints whose requests take tokens."""

TAKE_STREAM_OPTIONS = frozenset({"/v1/chat/completions", "/v1/completions"})
"""Endpoints whose streams tell their tokens only if they are asked to."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request as it came in.

    Attributes:
        path: One of the OpenAI endpoints; also the metrics' label.
        headers: Names in lower case.
        read_body: Reads the body, once; raises BodyTooLarge.
        request_id: The caller's, if it is a good one, or ours.
        received_at: ``time.perf_counter()`` at its arrival.
        trace: Where it is noted, if tracing is on.
    """

    path: str
    headers: Mapping[str, str]
    read_body: Callable[[], Awaitable[bytes]]
    request_id: str
    received_at: float
    trace: Trace | None = None

    def reached(self, step: Literal["auth", "read", "queue", "plan"]) -> float:
        """``time.perf_counter()`` at the end of a step, noted in the trace."""
        now = time.perf_counter()
        if self.trace is not None:
            self.trace.reached[step] = now
        return now


class Pipeline:
    """Carries requests to the engine; see the module's docstring."""

    def __init__(
        self,
        authenticator: Authenticator,
        limiter: Limiter,
        admission: Admission,
        watcher: LibraryWatcher,
        planner: Planner,
        pool: EnginePool,
        metrics: Metrics,
        limits: Limits,
        access_log: AccessLog,
        decisions: DecisionLog,
        *,
        count_stream_tokens: bool,
    ) -> None:
        self._authenticator = authenticator
        self._limiter = limiter
        self._admission = admission
        self._watcher = watcher
        self._planner = planner
        self._pool = pool
        self._metrics = metrics
        self._limits = limits
        self._access_log = access_log
        self._decisions = decisions
        self._count_stream_tokens = count_stream_tokens

    async def run(self, call: Call) -> Answer:
        """Carry a request to the engine and return its answer, which the caller must finish.

        Raises:
            GatewayError: Anything that went wrong before the engine's first byte.
        """
        principal = await self._authenticator.authorise(call.headers, "infer")
        authenticated = call.reached("auth")
        body = parse_body(await call.read_body())
        read = call.reached("read")
        if call.trace is not None:
            call.trace.asked(principal.key_id, body)
        grant = await self._limiter.admit(principal, body, generates=call.path in GENERATING)
        try:
            await self._admission.acquire()
        except BaseException:
            _give_back(grant)
            raise
        try:
            admitted = call.reached("queue")
            plan = await self._plan(call, body, principal)
            if call.trace is not None:
                call.trace.plan = plan
            counts = self._count_stream_tokens or (grant is not None and grant.counts_tokens)
            hide_usage = counts and call.path in TAKE_STREAM_OPTIONS and body.wants_no_usage
            asked = body.with_usage() if hide_usage else body
            request = EngineRequest(call.path, asked, plan.recipe, call.request_id, call.trace)
            overhead_s = call.reached("plan") - call.received_at - (read - authenticated)
            self._observe(authenticated - call.received_at, admitted - read, plan)
            response, deadline = await self._forward(request, call.received_at)
        except BaseException:
            self._admission.release()
            _give_back(grant)
            raise
        key, key_id = principal.name, principal.key_id
        origin = Origin(call.request_id, call.path, call.received_at, overhead_s, key, key_id, hide_usage, call.trace)
        records = self._metrics, self._access_log, self._decisions
        return Answer(response, deadline, plan, origin, self._limits, *records, self._admission.release, grant)

    async def explain(self, call: Call) -> tuple[Plan, dict[str, float]]:
        """Decide as `run` would, without generating: the plan, and the time of each phase in milliseconds.

        It is no decision in the metrics, and later requests are decided as if it had not been asked for.
        """
        principal = await self._authenticator.authorise(call.headers, "infer")
        authenticated = time.perf_counter()
        body = parse_body(await call.read_body())
        plan = await self._plan(replace(call, path=_explained_path(body)), body, principal, explains=True)
        times_ms = {
            "auth": (authenticated - call.received_at) * 1000,
            "embed": plan.embed_s * 1000,
            "route": plan.route_s * 1000,
        }
        return plan, times_ms

    async def _plan(self, call: Call, body: JsonBody, principal: Principal, *, explains: bool = False) -> Plan:
        catalog = self._watcher.catalog
        target = catalog.resolve(body.model, principal)
        if call.path in UNROUTED:
            return Plan(target, Base())
        asked = Asked(target, call.path, body, catalog, principal, call.request_id)
        return await (self._planner.explain(asked) if explains else self._planner.plan(asked))

    async def _forward(self, request: EngineRequest, received_at: float) -> tuple[PooledResponse, Deadline]:
        """Hand a request to the pool; the deadline goes on to run for the answer."""
        limit_s = self._limits.first_token_s if request.body.stream else self._limits.total_s
        deadline = Deadline(received_at + limit_s - time.perf_counter())
        try:
            return await self._pool.forward(request), deadline
        except BaseException as error:
            deadline.end()
            if isinstance(error, asyncio.CancelledError) and deadline.claims():
                raise EngineTimeout(f"The engine did not begin to answer within {limit_s:g} s.") from None
            raise

    def _observe(self, auth_s: float, queue_s: float, plan: Plan) -> None:
        phases = self._metrics.phases
        phases["auth"].observe(auth_s)
        phases["queue"].observe(queue_s)
        if plan.decision is not None:
            phases["embed"].observe(plan.embed_s)
            phases["route"].observe(plan.route_s)


def _give_back(grant: Grant | None) -> None:
    """Nothing was generated."""
    if grant is not None:
        grant.settle(0, 0.0)


def _explained_path(body: JsonBody) -> str:
    """The endpoint that a body is for, told by its fields."""
    if "messages" in body.fields:
        return "/v1/chat/completions"
    return "/v1/responses" if "input" in body.fields else "/v1/completions"
