"""The answer on its way back to the caller, unchanged except for ``model``, within limits on waiting.

One `Answer` belongs to one request. It holds the request's lease and its connection to the engine until `finish`, which
also records the outcome.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from server.access.entry import Lease
from server.engine.body import EventSplitter, ModelRewriter
from server.engine.errors import EngineFault
from server.engine.pool import PooledResponse
from server.errors import EngineLost, EngineTimeout, GatewayError, error_body
from server.request.deadline import Deadline
from server.request.recorder import ForwardedRequest, Recorder
from server.request.token_count import TokenCounter
from server.telemetry.traffic_counts import Outcome

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
    """Maximum waits for the first token of a stream and for a whole answer, in seconds."""

    first_token_s: float
    total_s: float


class Answer:
    """One request's answer; the caller reads or streams it, and must call `finish`.

    Args:
        response: The engine's response.
        deadline: A running deadline: for the whole answer, or for the first token of a stream.
        request: The request that is answered.
        lease: What the request holds; `finish` releases it.
        recorder: Records the outcome.
        limits: Maximum waits.
    """

    def __init__(
        self,
        *,
        response: PooledResponse,
        deadline: Deadline,
        request: ForwardedRequest,
        lease: Lease,
        recorder: Recorder,
        limits: Limits,
    ) -> None:
        self._response = response
        self._deadline = deadline
        self._request = request
        self._lease = lease
        self._recorder = recorder
        self._limits = limits
        self._finished = False
        self._first_byte_at: float | None = None
        self._tokens = TokenCounter(hide_usage=request.hide_usage)
        self._failed: GatewayError | None = None
        self.status = response.inner.status
        self.is_stream = response.inner.headers.get("content-type", "").startswith("text/event-stream")
        self._rewrite = ModelRewriter(response.inner.model, request.plan.target.asked)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the engine's headers, except those of its connection, and the gateway's."""
        passed = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in self._response.inner.headers.items()
            if name.lower() not in _DROPPED_HEADERS
        ]
        grant = self._lease.grant
        return passed + decision_headers(self._request) + (grant.headers() if grant else [])

    async def read(self) -> bytes:
        """Return the whole body of an answer that is not a stream.

        Raises:
            EngineLost: The engine's connection broke.
            EngineTimeout: The answer took too long.
        """
        try:
            payload = await self._response.inner.read()
        except asyncio.CancelledError:
            if not self._deadline.claims():
                raise
            raise self._fail(_timeout("the whole answer", self._limits.total_s)) from None
        except EngineFault as error:
            raise self._fail(_broke_off(error)) from None
        self._first_byte_at = time.perf_counter()
        self._tokens.read(payload)
        return self._rewrite(payload)

    async def stream_to(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Send whole server-sent events as they arrive; after a failure, the last event reports the error."""
        splitter = EventSplitter()
        try:
            async for chunk in self._response.inner.chunks():
                if self._first_byte_at is None:
                    self._first_byte_at = time.perf_counter()
                    waited_s = self._first_byte_at - self._request.received_at
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
                _error_event(self._fail(_timeout("the whole answer" if started else "the first token", limit_s)))
            )
        except EngineFault as error:
            await send(_error_event(self._fail(_broke_off(error))))

    def finish(self, *, client_left: bool = False) -> None:
        """Release the connection and the lease, and record the outcome; further calls have no effect."""
        if self._finished:
            return
        self._finished = True
        self._deadline.end()
        self._response.close()
        request, plan = self._request, self._request.plan
        status = 499 if client_left else (self._failed.status if self._failed else self.status)
        outcome = Outcome(
            endpoint=request.endpoint.path,
            policy=plan.policy_name or "none",
            expert=plan.expert_name,
            status=status,
            duration_s=time.perf_counter() - request.received_at,
            ttft_s=None if self._first_byte_at is None else self._first_byte_at - request.received_at,
            input_tokens=self._tokens.input_tokens,
            output_tokens=self._tokens.output_tokens,
            streamed=self.is_stream,
            trial_role=plan.trial_role,
            key=request.principal.name,
        )
        error = None
        if status >= 400:
            error = self._failed.code if self._failed else ("client_closed_request" if client_left else "engine_error")
        self._recorder.ended(request, self._lease, outcome, error=error, engine_status=self.status)

    def _fail(self, error: GatewayError) -> GatewayError:
        self._failed = error
        return error


def decision_headers(request: ForwardedRequest) -> list[tuple[bytes, bytes]]:
    """Return the headers that show the decision to the caller."""
    plan = request.plan
    headers = [
        (b"x-request-id", request.request_id.encode()),
        (b"x-moergate-recipe", str(plan.recipe).encode()),
        (b"x-moergate-overhead-ms", b"%.2f" % (request.overhead_s * 1000)),
    ]
    if plan.policy_name is not None and plan.decision is not None:
        headers.append((b"x-moergate-policy", plan.policy_name.encode()))
        headers.append((b"x-moergate-confidence", b"%.3f" % plan.decision.confidence))
    return headers


def _error_event(error: GatewayError) -> bytes:
    return b"data: " + error_body(error) + b"\n\n"


def _timeout(what: str, limit_s: float) -> EngineTimeout:
    return EngineTimeout(f"The engine did not send {what} within {limit_s:g} s.")


def _broke_off(error: EngineFault) -> EngineLost:
    return EngineLost(f"{error} The answer is incomplete; send the request again.")
