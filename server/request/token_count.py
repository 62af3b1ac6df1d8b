"""How many tokens a request took, read from the bytes of its answer without parsing them all.

An answer that is no stream says it in ``usage``. A stream says it only if it was asked to; otherwise its
events are counted, for vLLM sends one a token.
"""

from __future__ import annotations

import re

import orjson

_MARK = b'"usage":{'
_USAGE = re.compile(rb'"usage":(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')


class TokenCounter:
    """Tokens of one answer.

    Args:
        hide_usage: Take the event with the counts out of a stream, since it was we who asked for it.
    """

    def __init__(self, *, hide_usage: bool = False) -> None:
        self._hide_usage = hide_usage
        self._num_events = 0
        self._said_output = 0
        self.input_tokens = 0

    @property
    def output_tokens(self) -> int:
        """Generated tokens: as the engine says, else the number of events."""
        return self._said_output or self._num_events

    def read(self, payload: bytes) -> None:
        """Look at a whole answer, or at part of one."""
        if _MARK not in payload or not (found := _USAGE.findall(payload)):
            return
        try:
            usage = orjson.loads(found[-1])
        except orjson.JSONDecodeError:
            return
        self.input_tokens = _first_count(usage, "prompt_tokens", "input_tokens") or self.input_tokens
        self._said_output = _first_count(usage, "completion_tokens", "output_tokens") or self._said_output

    def events(self, events: bytes) -> bytes:
        """Look at whole events of a stream; gives back what the caller shall see of them."""
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
