"""The inference endpoints, as one plain ASGI application: the hot path bypasses the web framework.

A client that disconnects cancels its request, and with it the work in the engine.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from server.api.incoming import error_response, headers_of, read_body, request_id_of
from server.endpoints import ENDPOINTS
from server.errors import ClientClosedRequest, from_lower
from server.request.answer import Answer
from server.request.pipeline import Call, Pipeline
from server.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from server.tracing.exporter import Tracing

log = structlog.get_logger(__name__)


class InferenceApp:
    """Answers the inference endpoints.

    Args:
        pipeline: Answers the requests.
        metrics: Counts errors before the engine's first byte.
        max_body_bytes: Maximum size of a request's body.
        tracing: Begins traces; None disables them.
    """

    def __init__(
        self, pipeline: Pipeline, metrics: Metrics, max_body_bytes: int, tracing: Tracing | None = None
    ) -> None:
        self._pipeline = pipeline
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received_at = time.perf_counter()
        endpoint = ENDPOINTS[scope["path"]]
        headers = headers_of(scope)
        request_id = request_id_of(headers)
        structlog.contextvars.bind_contextvars(request_id=request_id)
        trace = None
        if self._tracing is not None:
            trace = self._tracing.begin(endpoint, headers, request_id, received_at)
            structlog.contextvars.bind_contextvars(trace_id=trace.trace_id)
        hang_up = _HangUp(receive)

        async def body() -> bytes:
            raw = await read_body(headers, receive, self._max_body_bytes, setting="max_body_bytes")
            hang_up.watch()
            return raw

        call = Call(endpoint, headers, body, request_id, received_at, trace)
        try:
            await self._answer(call, send, hang_up)
        finally:
            hang_up.stop()

    async def _answer(self, call: Call, send: Send, hang_up: _HangUp) -> None:
        answer: Answer | None = None
        # Keep only the status and code of an error: the error refers to this frame, and keeping it would make a cycle.
        status: int = ClientClosedRequest.status
        code: str | None = ClientClosedRequest.code
        started = False

        async def start(status: int, headers: list[tuple[bytes, bytes]]) -> None:
            nonlocal started
            started = True
            await send({"type": "http.response.start", "status": status, "headers": headers})

        async def pass_on(events: bytes) -> None:
            await send({"type": "http.response.body", "body": events, "more_body": True})

        try:
            answer = await self._pipeline.run(call)
            if answer.is_stream:
                await start(answer.status, answer.headers())
                await answer.stream_to(pass_on)
                await send({"type": "http.response.body", "body": b""})
            else:
                payload = await answer.read()
                await start(answer.status, [*answer.headers(), (b"content-length", b"%d" % len(payload))])
                await send({"type": "http.response.body", "body": payload})
        except asyncio.CancelledError:
            if not hang_up.happened:
                raise
            if answer is None:
                self._metrics.record_error(call.endpoint.path, "client_closed_request", 499)
                log.info("client disconnected", request_id=call.request_id, endpoint=call.endpoint.path)
        except Exception as error:
            status, code, response = self._refusal(error, call, has_answer=answer is not None)
            if not started:
                await response({"type": "http"}, _no_receive, send)
        finally:
            if answer is not None:
                answer.finish(client_left=hang_up.happened)
            elif call.trace is not None:
                call.trace.refused(status, code)

    def _refusal(self, error: Exception, call: Call, *, has_answer: bool) -> tuple[int, str | None, Response]:
        """Log and count an error; returns its status, its code, and the response."""
        known = from_lower(error)
        if known.status == 500:
            log.exception("request failed", request_id=call.request_id, endpoint=call.endpoint.path)
        elif not has_answer:
            log.info("refused", request_id=call.request_id, endpoint=call.endpoint.path, code=known.code)
        if not has_answer:
            self._metrics.record_error(call.endpoint.path, known.code or "error", known.status)
        return known.status, known.code, error_response(known, call.request_id)


class _HangUp:
    """Cancels the request's task when the client closes the connection.

    It begins to watch after `FIRST_LOOK_S`, so that requests with faster answers need no task for it.
    """

    FIRST_LOOK_S = 0.05

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._task = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.happened = False

    def watch(self) -> None:
        """Begin to watch; must not be called before the body has been read."""
        self._timer = asyncio.get_running_loop().call_later(self.FIRST_LOOK_S, self._look)

    def stop(self) -> None:
        """Stop watching."""
        # Drop the references to timer and watcher: a cycle with them would wait for the garbage collector.
        timer, watcher = self._timer, self._watcher
        self._timer = self._watcher = None
        if timer:
            timer.cancel()
        if watcher:
            watcher.cancel()

    def _look(self) -> None:
        self._watcher = asyncio.create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.happened = True
        if self._task:
            self._task.cancel()


async def _no_receive() -> Message:
    return {"type": "http.disconnect"}
