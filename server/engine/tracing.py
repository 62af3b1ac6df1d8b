"""Measures how long it takes to get a connection to an engine and send a request over it."""

from __future__ import annotations

import time
from types import SimpleNamespace

import aiohttp
from prometheus_client import Histogram


def connect_trace(histogram: Histogram) -> aiohttp.TraceConfig:
    """A trace for the HTTP session: from the request's start to its headers on the wire, in seconds."""

    async def begin(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: object) -> None:
        context.started = time.perf_counter()

    async def sent(_session: aiohttp.ClientSession, context: SimpleNamespace, params: object) -> None:
        if isinstance(params, aiohttp.TraceRequestHeadersSentParams) and params.method == "POST":
            histogram.observe(time.perf_counter() - context.started)

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(begin)
    trace.on_request_headers_sent.append(sent)
    return trace
