"""The answer on its way back: bytes as they come but for ``model``, limits on waiting, and what is known at the end.

One `Answer` belongs to one request. It holds the request's place and its connection to the engine until `finish`, which
also records the outcome; `finish` may be called more than once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from server.access.key_limits import Grant
from server.engine.body import EventSplitter, ModelRewriter
from server.engine.errors import EngineFault
from server.engine.pool import PooledResponse
from server.errors import EngineLost, EngineTimeout, GatewayError, error_body
from server.journal.decision_log import DecisionLog
from server.planning.planner import Plan
from server.request.deadline import Deadline
from server.request.token_count import TokenCounter
from server.telemetry.logs import AccessLog
from server.telemetry.metrics import Metrics, Outcome

if TYPE_CHECKING:
    from server.tracing.request_trace import Trace

_DROPPED_HEADERS = frozenset(
    {
        "connection",
        "keep-alive",
        "transfer-encoding",
        "content-length",
        "content-encoding",
        "date",
        "server",
        "x-request-id",
    }
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Longest waits, in seconds."""

    first_token_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Origin:
    """What an answer must know of its request; `key` is the name of the caller's API key."""

    request_id: str
    endpoint: str
    received_at: float
    overhead_s: float
    key: str = "none"
    key_id: str = ""
    hide_usage: bool = False
    trace: Trace | None = None


class Answer:
    """See the module's docstring.

    Args:
        response: The engine's answer.
        deadline: Runs already; for the whole answer, or for a stream's first token.
        plan: What was executed.
        origin: The request.
        limits: Longest waits.
        metrics: Where the outcome goes.
        access_log: Where its line goes.
        decisions: Where the decision goes.
        release: Gives the request's place back.
        grant: Of a key with limits.
    """

    def __init__(
        self,
        response: PooledResponse,
        deadline: Deadline,
        plan: Plan,
        origin: Origin,
        limits: Limits,
        metrics: Metrics,
        access_log: AccessLog,
        decisions: DecisionLog,
        release: Callable[[], None],
        grant: Grant | None = None,
    ) -> None:
        self._response = response
        self._deadline = deadline
        self._plan = plan
        self._origin = origin
        self._limits = limits
        self._metrics = metrics
        self._access_log = access_log
        self._decisions = decisions
        self._release = release
        self._grant = grant
        self._finished = False
        self._first_byte_at: float | None = None
        self._tokens = TokenCounter(hide_usage=origin.hide_usage)
        self._failed: GatewayError | None = None
        self.status = response.inner.status
        self.is_stream = response.inner.headers.get("content-type", "").startswith("text/event-stream")
        self._rewrite = ModelRewriter(response.inner.model, plan.target.asked)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The engine's headers without those of its connection, and ours."""
        passed = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in self._response.inner.headers.items()
            if name.lower() not in _DROPPED_HEADERS
        ]
        limits = self._grant.headers() if self._grant else []
        return passed + decision_headers(self._plan, self._origin) + limits

    async def read(self) -> bytes:
        """The whole body of an answer that is no stream.

        Raises:
            EngineLost: The engine broke off.
            EngineTimeout: The answer took too long.
        """
        try:
            payload = await self._response.inner.read()
        except asyncio.CancelledError:
            if not self._deadline.claims():
                raise
            raise self._fail(_too_slow("the whole answer", self._limits.total_s)) from None
        except EngineFault as error:
            raise self._fail(_broke_off(error)) from None
        self._first_byte_at = time.perf_counter()
        self._tokens.read(payload)
        return self._rewrite(payload)

    async def stream_to(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Send whole server-sent events as they come; a failure ends them with an error event, never in silence."""
        splitter = EventSplitter()
        try:
            async for chunk in self._response.inner.chunks():
                if self._first_byte_at is None:
                    self._first_byte_at = time.perf_counter()
                    waited_s = self._first_byte_at - self._origin.received_at
                    self._deadline.move(self._limits.total_s - waited_s)
                events = splitter.feed(chunk)
                if events:
                    await send(self._rewrite(self._tokens.events(events)))
            rest = splitter.rest()
            if rest:
                await send(self._rewrite(self._tokens.events(rest)))
        except asyncio.CancelledError:
            if not self._deadline.claims():
                raise
            started = self._first_byte_at is not None
            limit_s = self._limits.total_s if started else self._limits.first_token_s
            await send(
                _error_event(self._fail(_too_slow("the whole answer" if started else "the first token", limit_s)))
            )
        except EngineFault as error:
            await send(_error_event(self._fail(_broke_off(error))))

    def finish(self, *, client_left: bool = False) -> None:
        """Let go of connection and place, and record the outcome."""
        if self._finished:
            return
        self._finished = True
        self._deadline.end()
        self._response.close()
        self._release()
        duration_s = time.perf_counter() - self._origin.received_at
        status = 499 if client_left else (self._failed.status if self._failed else self.status)
        ttft_s = None if self._first_byte_at is None else self._first_byte_at - self._origin.received_at
        outcome = Outcome(
            endpoint=self._origin.endpoint,
            policy=self._plan.policy_name or "none",
            expert=self._plan.expert_name,
            status=status,
            duration_s=duration_s,
            ttft_s=ttft_s,
            input_tokens=self._tokens.input_tokens,
            output_tokens=self._tokens.output_tokens,
            streamed=self.is_stream,
            trial_role=self._plan.trial_role,
            key=self._origin.key,
        )
        self._metrics.record(outcome)
        self._decisions.note(self._plan, outcome, self._origin.request_id, self._origin.key_id)
        if self._grant:
            is_unsaid = not outcome.input_tokens and self.status < 400  # a caller who hung up pays for the prompt too
            spent = replace(outcome, input_tokens=self._grant.prompt_tokens) if is_unsaid else outcome
            self._grant.settle(spent.input_tokens + spent.output_tokens, self._metrics.cost_of(spent))
        code = None
        if status >= 400:
            code = self._failed.code if self._failed else ("client_closed_request" if client_left else "engine_error")
            self._metrics.record_error(self._origin.endpoint, code or "engine_error", status)
        if (trace := self._origin.trace) is not None:
            trace.answered(outcome, code, self.status)
        self._access_log.write(
            request_id=self._origin.request_id,
            endpoint=self._origin.endpoint,
            model=ascii(self._plan.target.asked[:200])[1:-1],
            recipe=str(self._plan.recipe),
            status=status,
            duration_ms=round(duration_s * 1000, 1),
            overhead_ms=round(self._origin.overhead_s * 1000, 2),
            output_tokens=self._tokens.output_tokens,
            **({} if trace is None else {"trace_id": trace.trace_id}),
        )

    def _fail(self, error: GatewayError) -> GatewayError:
        self._failed = error
        return error


def decision_headers(plan: Plan, origin: Origin) -> list[tuple[bytes, bytes]]:
    """What was decided, for the caller to see."""
    headers = [
        (b"x-request-id", origin.request_id.encode()),
        (b"x-moergate-recipe", str(plan.recipe).encode()),
        (b"x-moergate-overhead-ms", b"%.2f" % (origin.overhead_s * 1000)),
    ]
    if plan.policy_name is not None and plan.decision is not None:
        headers.append((b"x-moergate-policy", plan.policy_name.encode()))
        headers.append((b"x-moergate-confidence", b"%.3f" % plan.decision.confidence))
    return headers


def _error_event(error: GatewayError) -> bytes:
    return b"data: " + error_body(error) + b"\n\n"


def _too_slow(what: str, limit_s: float) -> EngineTimeout:
    return EngineTimeout(f"The engine did not send {what} within {limit_s:g} s.")


def _broke_off(error: EngineFault) -> EngineLost:
    return EngineLost(f"{error} What was generated is incomplete; send the request again.")
