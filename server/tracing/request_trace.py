"""One request's trace: notes taken while the request runs, and the spans made from them when it ends.

`server.tracing.exporter` begins a trace, the data path notes its steps, and `answered` or `refused` ends it. All spans
are created at the end. This takes a seventh of the time of the SDK's context managers, and keeps the data path
readable. The root span's name follows OpenTelemetry's conventions for generative AI, which are still in development.
`server.tracing.span_attributes` says what spans may contain.

    chat auto                  the request, from its arrival to its answer's last byte
    ├── auth                   key → principal
    ├── queue                  limits of the key, and the wait for a permit
    ├── embed, route           if a policy was asked
    └── upstream               one for each replica that was asked
        └── first token        for a stream: until its first bytes
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from server.endpoints import Endpoint
from server.tracing.span_attributes import (
    MAX_TEXT_CHARS,
    Attributes,
    address_of,
    answer_attributes,
    model_name,
    plan_attributes,
    request_attributes,
)

if TYPE_CHECKING:
    from server.engine.body import JsonBody
    from server.planning.plan import Plan
    from server.telemetry.traffic_counts import Outcome

_OK, _ERROR = Status(StatusCode.UNSET), Status(StatusCode.ERROR)
_PROPAGATOR = TraceContextTextMapPropagator()


@dataclass(frozen=True, slots=True)
class SpanSink:
    """Where spans go, and what all spans share."""

    emit: Callable[[ReadableSpan], None]
    new_span_id: Callable[[], int]
    resource: Resource
    scope: InstrumentationScope


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A replica that was asked."""

    replica: str
    context: SpanContext
    started_at: float
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class _End:
    """How a request ended.

    Attributes:
        at: Time of the end, by ``time.perf_counter()``.
        status: HTTP status sent to the caller; None if the caller had left.
        error: Code of the error, if there was one.
        is_fault: Whether gateway or engine, not the caller, caused the error.
        outcome: Outcome of the answer, if there was one.
        engine_status: HTTP status of the engine.
    """

    at: float
    status: int | None
    error: str | None
    is_fault: bool
    outcome: Outcome | None = None
    engine_status: int | None = None


class Trace:
    """Collects the steps of a request, and writes its spans when the request ends.

    Args:
        sink: Destination of the spans.
        context: Context of the root span; says whether the trace is recorded.
        parent: The caller's span, if it sent one.
        endpoint: The endpoint that was called.
        headers: Headers of the request.
        request_id: Id of the request.
        received_at: ``time.perf_counter()`` at the request's arrival.
    """

    def __init__(
        self,
        sink: SpanSink,
        context: SpanContext,
        parent: SpanContext | None,
        endpoint: Endpoint,
        headers: Mapping[str, str],
        request_id: str,
        received_at: float,
    ) -> None:
        self.trace_id = f"{context.trace_id:032x}"
        self.reached: dict[str, float] = {}
        self.plan: Plan | None = None
        self._sink = sink
        self._context = context
        self._is_recorded = bool(context.trace_flags.sampled)
        self._parent = parent
        self._endpoint = endpoint
        self._headers = headers
        self._request_id = request_id
        self._received_at = received_at
        self._request_attributes: Attributes = {}
        self._attempts: list[_Attempt] = []
        self._epoch_ns = time.time_ns() - int(time.perf_counter() * 1e9)

    def note_request(self, key_id: str, body: JsonBody) -> None:
        """Note what the caller asked for."""
        if not self._is_recorded:
            return
        self._request_attributes = {"moergate.key_id": key_id, **request_attributes(self._endpoint, body)}

    def attempt(self, replica: str) -> None:
        """See `server.engine.base.EngineTrace`."""
        context = _child_of(self._context, self._sink.new_span_id())
        if self._attempts and self._is_recorded:
            self._write_attempt(self._attempts[-1], _End(time.perf_counter(), None, "engine_lost", True))
        attributes: Attributes = {"http.request.method": "POST", "moergate.replica": replica}
        if self._attempts:
            attributes["http.request.resend_count"] = len(self._attempts)
        self._attempts.append(_Attempt(replica, context, time.perf_counter(), attributes))

    def headers(self, url: str) -> dict[str, str]:
        """See `server.engine.base.EngineTrace`."""
        attempt = self._attempts[-1]
        if "@" not in url:  # otherwise the URL contains a password
            attempt.attributes["url.full"] = url
        attempt.attributes.update(address_of(urlsplit(url).netloc))
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, set_span_in_context(NonRecordingSpan(attempt.context)))
        return carrier

    def answered(self, outcome: Outcome, error: str | None, engine_status: int) -> None:
        """End the trace of a request that an engine answered; `error` is the code of a failure in spite of that."""
        status = engine_status if outcome.streamed else outcome.status
        at = self._received_at + outcome.duration_s
        seen = None if status == 499 else status
        self._end(_End(at, seen, error, outcome.status >= 500, outcome, engine_status))

    def refused(self, status: int, error: str | None) -> None:
        """End the trace of a request that no engine answered."""
        self._end(_End(time.perf_counter(), None if status == 499 else status, error, status >= 500))

    def _end(self, end: _End) -> None:
        if not self._is_recorded:
            return
        self._write_steps(end)
        if self._attempts:
            self._write_attempt(self._attempts[-1], end)
        self._write_root(end)

    def _write_steps(self, end: _End) -> None:
        """Write the steps in order; the step that did not end is where the request failed."""
        self._step("auth", self._received_at, self.reached.get("auth"), end)
        if (read_at := self.reached.get("read")) is None:
            return
        queued_at = self.reached.get("queue")
        self._step("queue", read_at, queued_at, end)
        if queued_at is None:
            return
        plan, planned_at = self.plan, self.reached.get("plan")
        if plan is None or planned_at is None:
            self._step("route", queued_at, None, end)
        elif plan.decision is not None:
            embedded_at = planned_at - plan.route_s
            self._step("embed", embedded_at - plan.embed_s, embedded_at, end)
            self._step("route", embedded_at, planned_at, end)

    def _step(self, name: str, start_at: float, end_at: float | None, end: _End) -> None:
        context = _child_of(self._context, self._sink.new_span_id())
        if end_at is None:
            self._write(name, context, self._context, start_at, end.at, _error(end), is_error=end.is_fault)
        else:
            self._write(name, context, self._context, start_at, end_at, {})

    def _write_attempt(self, attempt: _Attempt, end: _End) -> None:
        attributes = attempt.attributes | _error(end)
        if end.engine_status is not None:
            attributes["http.response.status_code"] = end.engine_status
            if end.engine_status >= 400:
                attributes["error.type"] = str(end.engine_status)
        is_error = end.is_fault or (end.engine_status or 0) >= 400
        if end.outcome is not None and end.outcome.streamed and end.outcome.ttft_s is not None:
            context = _child_of(attempt.context, self._sink.new_span_id())
            first_at = self._received_at + end.outcome.ttft_s
            self._write("first token", context, attempt.context, attempt.started_at, first_at, {})
        times = attempt.started_at, end.at
        self._write("upstream", attempt.context, self._context, *times, attributes, SpanKind.CLIENT, is_error=is_error)

    def _write_root(self, end: _End) -> None:
        attributes: Attributes = {
            "http.request.method": "POST",
            "http.route": self._endpoint.path,
            "url.scheme": "http",
            "url.path": self._endpoint.path,
            "moergate.request_id": self._request_id,
            **address_of(self._headers.get("host", "")),
            **self._request_attributes,
            **_error(end),
        }
        if end.status is not None:
            attributes["http.response.status_code"] = end.status
        if agent := self._headers.get("user-agent"):
            attributes["user_agent.original"] = agent[:MAX_TEXT_CHARS]
        operation = self._endpoint.operation
        if operation is not None:
            attributes["gen_ai.operation.name"] = operation
            attributes["gen_ai.provider.name"] = "moergate"
        if self.plan is not None:
            attributes.update(plan_attributes(self.plan))
        if operation is not None and end.outcome is not None:
            attributes.update(answer_attributes(end.outcome, str(self.plan.recipe) if self.plan else "base"))
        name = f"{operation} {model_name(self.plan)}".rstrip() if operation else f"POST {self._endpoint.path}"
        times = self._received_at, end.at
        self._write(name, self._context, self._parent, *times, attributes, SpanKind.SERVER, is_error=end.is_fault)

    def _write(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        start_at: float,
        end_at: float,
        attributes: Attributes,
        kind: SpanKind = SpanKind.INTERNAL,
        *,
        is_error: bool = False,
    ) -> None:
        start_ns = self._epoch_ns + int(start_at * 1e9)
        span = ReadableSpan(
            name,
            context,
            parent,
            self._sink.resource,
            attributes,
            kind=kind,
            status=_ERROR if is_error else _OK,
            start_time=start_ns,
            end_time=max(start_ns, self._epoch_ns + int(end_at * 1e9)),
            instrumentation_scope=self._sink.scope,
        )
        self._sink.emit(span)


def _child_of(parent: SpanContext, span_id: int) -> SpanContext:
    return SpanContext(parent.trace_id, span_id, False, parent.trace_flags, parent.trace_state)


def _error(end: _End) -> Attributes:
    return {} if end.error is None else {"error.type": end.error}
