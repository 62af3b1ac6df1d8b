"""An OpenTelemetry collector: takes traces by OTLP over HTTP, and gives them back as plain values."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2
from starlette.types import Receive, Scope, Send


@dataclass(frozen=True)
class Span:
    """One span; times in nanoseconds since 1970."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: str
    start: int
    end: int
    is_error: bool
    attributes: dict[str, Any]
    resource: dict[str, Any]


@dataclass
class Collector:
    """An ASGI application that keeps all spans it gets, and the exports' raw bytes and headers."""

    spans: list[Span] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)
    _came: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.bodies.append(body)
        self.headers.append({k.decode(): v.decode() for k, v in scope["headers"]})
        self.paths.add(scope["path"])
        async with self._came:
            self.spans += _spans_of(ExportTraceServiceRequest.FromString(body))
            self._came.notify_all()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def traces(self, num: int = 1) -> list[dict[str, list[Span]]]:
        """The spans of each trace by name, in the order of the traces' roots; waits until so many roots have come."""
        async with asyncio.timeout(10), self._came:
            await self._came.wait_for(lambda: len(self._roots()) >= num)
        return [self._trace(root) for root in self._roots()]

    async def trace(self) -> dict[str, list[Span]]:
        """The only trace."""
        (trace,) = await self.traces()
        return trace

    def _roots(self) -> list[Span]:
        return [span for span in self.spans if span.kind == "SERVER"]

    def _trace(self, root: Span) -> dict[str, list[Span]]:
        found: dict[str, list[Span]] = {"root": [root]}
        for span in self.spans:
            if span.trace_id == root.trace_id and span is not root:
                found.setdefault(span.name, []).append(span)
        return found


def _spans_of(request: ExportTraceServiceRequest) -> Iterable[Span]:
    for resource_spans in request.resource_spans:
        resource = {pair.key: _value(pair.value) for pair in resource_spans.resource.attributes}
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield Span(
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
                    {pair.key: _value(pair.value) for pair in span.attributes},
                    resource,
                )


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))
