"""Logging of the whole process to standard error: structlog, as readable lines or one JSON object a line.

Libraries that use the standard library's logging (uvicorn, aiohttp, alembic) appear in the same form.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import Any, Literal, TextIO

import orjson
import structlog


def configure_logging(level: str, form: Literal["console", "json"]) -> None:
    """Set up logging; called once by the command line, never at import."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    renderer: Any
    if form == "json":
        shared.append(structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer(serializer=_dumps)
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback, timestamp_key="time"
        )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.WARNING))
    logging.getLogger("uvicorn.error").setLevel(max(number, logging.WARNING))


class AccessLog:
    """One line a request, written a few times a second, so that the hot path never waits for a terminal.

    Args:
        form: Form of the lines, as for `configure_logging`; None writes nothing.
        out: Where lines go; None means standard error.
    """

    FLUSH_S = 0.2

    def __init__(self, form: Literal["console", "json"] | None, out: TextIO | None = None) -> None:
        self._form = form
        self._out = out
        self._lines: list[str] = []
        self._second = 0.0
        self._second_text = ""

    def write(self, **fields: str | int | float) -> None:
        """Log a request; needs a running event loop."""
        if self._form is None:
            return
        now = self._now()
        if self._form == "json":
            event = {"time": now, "level": "info", "event": "request", **fields}
            self._lines.append(orjson.dumps(event).decode())
        else:
            self._lines.append(f"{now} [info     ] request  " + " ".join(f"{k}={v}" for k, v in fields.items()))
        if len(self._lines) == 1:
            asyncio.get_running_loop().call_later(self.FLUSH_S, self.flush)

    def _now(self) -> str:
        """The time in ISO 8601 with milliseconds; the part up to the second is formatted once a second."""
        second, fraction = divmod(time.time(), 1)
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._second_text}.{int(fraction * 1000):03d}Z"

    def flush(self) -> None:
        """Write the lines that wait."""
        if self._lines:
            out = self._out or sys.stderr
            out.write("\n".join(self._lines) + "\n")
            out.flush()
            self._lines.clear()


def _dumps(event: Any, default: Any = None, **_unused: Any) -> str:
    return orjson.dumps(event, default=default).decode()
