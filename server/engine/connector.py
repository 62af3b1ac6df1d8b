"""Connections to engines, with a measure of how long it takes to get one."""

from __future__ import annotations

import time
from typing import Any

import aiohttp
from aiohttp.connector import Connection
from prometheus_client import Histogram


class TimedConnector(aiohttp.TCPConnector):
    """Observes, in seconds, how long each request waited for its connection, kept alive or new.

    Args:
        histogram: Where the times go.
        options: As for aiohttp.TCPConnector.
    """

    def __init__(self, histogram: Histogram, **options: Any) -> None:
        super().__init__(**options)
        self._histogram = histogram

    async def connect(self, *args: Any, **kwargs: Any) -> Connection:
        """Get a connection; raises what aiohttp raises."""
        started = time.perf_counter()
        try:
            return await super().connect(*args, **kwargs)
        finally:
            self._histogram.observe(time.perf_counter() - started)
