"""Counts the tokens of a request from the bytes of its answer, without parsing the whole answer.

An answer that is not a stream reports them in ``usage``. A stream reports them only on request. Without that report,
events are counted, because vLLM sends one event per token.
"""

from __future__ import annotations

import re

import orjson

_MARK = b'"usage":{'
_USAGE = re.compile(rb'"usage":(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')


class TokenCounter:
    """Counts the tokens of one answer.

    Args:
        hide_usage: Remove the event with the counts from a stream, because the gateway asked for it, not the caller.
    """

    def __init__(self, *, hide_usage: bool = False) -> None:
        self._hide_usage = hide_usage
        self._num_events = 0
        self._reported_output = 0
        self.input_tokens = 0

    @property
    def output_tokens(self) -> int:
        """Generated tokens: as reported by the engine, else the number of events."""
        return self._reported_output or self._num_events

    def read(self, payload: bytes) -> None:
        """Read the counts from a whole answer or a part of it."""
        if _MARK not in payload or not (found := _USAGE.findall(payload)):
            return
        try:
            usage = orjson.loads(found[-1])
        except orjson.JSONDecodeError:
            return
        self.input_tokens = _first_count(usage, "prompt_tokens", "input_tokens") or self.input_tokens
        self._reported_output = _first_count(usage, "completion_tokens", "output_tokens") or self._reported_output

    def events(self, events: bytes) -> bytes:
        """Read whole events of a stream, and return those that the caller may see."""
        self._num_events += events.count(b"\ndata: {") + events.startswith(b"data: {")
        if _MARK not in events:
            return events
        self.read(events)
        return _without_usage(events) if self._hide_usage else events


def _without_usage(events: bytes) -> bytes:
    return b"\n\n".join(e for e in events.split(b"\n\n") if not (b'"choices":[]' in e and _MARK in e))


def _first_count(usage: dict[str, object], *names: str) -> int:
    for name in names:
        value = usage.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return 0
