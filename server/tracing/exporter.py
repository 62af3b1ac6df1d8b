"""Tracing: decides which requests are traced, and sends their spans to an OpenTelemetry collector.

This module is imported only if the setting `otlp_endpoint` is given. A thread sends spans in batches from a bounded
queue (OTLP over HTTP). While the collector is unreachable, the oldest spans are dropped, and no request waits. The
standard ``OTEL_…`` variables for sampling, resource, headers, batches and timeouts apply.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import uuid
from collections.abc import Mapping, Sequence
from importlib.metadata import version

import structlog
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from server.endpoints import Endpoint
from server.settings import SettingsError
from server.tracing.request_trace import SpanSink, Trace

TRACES_PATH = "/v1/traces"
CLOSE_S = 3.0
"""Maximum time for sending the remaining spans when the gateway stops, in seconds."""

log = structlog.get_logger(__name__)


class Tracing:
    """Begins the traces of requests, and exports their spans.

    Args:
        endpoint: The collector's URL, with or without ``/v1/traces``.

    Raises:
        SettingsError: A standard variable has a bad value.
    """

    def __init__(self, endpoint: str) -> None:
        ours = {"service.name": "moergate", "service.version": version("moergate")}
        self._ids = RandomIdGenerator()
        self._propagator = TraceContextTextMapPropagator()
        url = endpoint if endpoint.endswith(TRACES_PATH) else endpoint.rstrip("/") + TRACES_PATH
        try:
            resource = Resource.create({**ours, "service.instance.id": str(uuid.uuid4())}).merge(
                OTELResourceDetector().detect()
            )
            self._sampler = TracerProvider(resource=resource, shutdown_on_exit=False).sampler
            self._exporter = _QuietExporter(url)
            self._processor = BatchSpanProcessor(self._exporter)
        except ValueError as error:
            raise SettingsError(
                f"Tracing cannot start because an OTEL_… variable has an invalid value: {error}"
            ) from None
        scope = InstrumentationScope("moergate", version("moergate"))
        self._sink = SpanSink(self._processor.on_end, self._ids.generate_span_id, resource, scope)

    def begin(self, endpoint: Endpoint, headers: Mapping[str, str], request_id: str, received_at: float) -> Trace:
        """Begin the trace of a request; a ``traceparent`` header makes it part of the caller's trace."""
        caller = self._propagator.extract(headers)
        parent = get_current_span(caller).get_span_context()
        trace_id = parent.trace_id if parent.is_valid else self._ids.generate_trace_id()
        name = endpoint.operation or f"POST {endpoint.path}"
        sampled = self._sampler.should_sample(caller, trace_id, name, SpanKind.SERVER, {"http.route": endpoint.path})
        flags = TraceFlags(TraceFlags.SAMPLED if sampled.decision is Decision.RECORD_AND_SAMPLE else TraceFlags.DEFAULT)
        context = SpanContext(trace_id, self._ids.generate_span_id(), False, flags, sampled.trace_state)
        known = parent if parent.is_valid else None
        return Trace(self._sink, context, known, endpoint, headers, request_id, received_at)

    async def close(self) -> None:
        """Send the remaining spans, for at most `CLOSE_S` seconds."""
        loop, sent = asyncio.get_running_loop(), asyncio.Event()

        def send() -> None:
            self._processor.shutdown()  # type: ignore[no-untyped-call]
            with contextlib.suppress(RuntimeError):  # the loop may already be closed
                loop.call_soon_threadsafe(sent.set)

        threading.Thread(target=send, name="tracing-close", daemon=True).start()
        try:
            async with asyncio.timeout(CLOSE_S):
                await sent.wait()
        except TimeoutError:
            log.warning("traces lost: the collector does not accept them", wait_s=CLOSE_S)
            self._exporter.shutdown()


class _QuietExporter(SpanExporter):
    """The OTLP exporter, with one log line when it starts to fail and one when it works again."""

    def __init__(self, url: str) -> None:
        self._inner = trace_exporter.OTLPSpanExporter(endpoint=url)
        self._url = url
        self._fails = False
        self._is_shut = False
        logging.getLogger(trace_exporter.__name__).addFilter(_FIRST_WORDS)  # adding the filter twice has no effect

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch of spans; runs in the exporter's thread."""
        _FIRST_WORDS.text = ""
        result = self._inner.export(spans)
        fails = result is not SpanExportResult.SUCCESS
        if fails and not self._fails and not self._is_shut:
            log.warning("traces cannot be exported", endpoint=self._url, why=_FIRST_WORDS.text)
        elif self._fails and not fails:
            log.info("traces are exported again", endpoint=self._url)
        self._fails = fails
        return result

    def shutdown(self) -> None:
        """Stop sending; further calls have no effect."""
        if not self._is_shut:
            self._is_shut = True
            self._inner.shutdown()  # type: ignore[no-untyped-call]


class _FirstWords(logging.Filter):
    """Keeps the first message of a logger, which is the most informative, and suppresses all of them."""

    text = ""

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`."""
        self.text = self.text or record.getMessage()
        return False


_FIRST_WORDS = _FirstWords()
