"""Bodies of requests and answers: read what we need, change ``model``, and leave every other byte alone.

A request's body is parsed once. To change its model, the value's bytes are replaced in place; only where that
is not certain to be right (the text ``"model"`` occurs more than once or with escapes, or the field is
absent) the parsed body is written anew. In answers the engine's name for the model is replaced by what the
caller asked for; that byte sequence cannot occur inside a JSON string, where its quotes would be escaped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import orjson

from server.errors import BadRequest

_MAX_TOKENS_FIELDS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_MODEL_VALUE = re.compile(rb'"model"\s*:\s*("(?:[^"\\]|\\.)*")')


@dataclass(frozen=True, slots=True)
class JsonBody:
    """A request's body: the bytes as they came, and what they say."""

    raw: bytes
    fields: dict[str, Any]

    @property
    def model(self) -> str | None:
        """The field ``model``, or None if it is absent or null."""
        return self.fields.get("model")

    @property
    def stream(self) -> bool:
        """Whether the caller asked for a stream."""
        return self.fields.get("stream") is True

    @property
    def turns(self) -> list[Any]:
        """The conversation: items of ``messages``, or of ``input`` for responses; empty for other prompts."""
        found = self.fields.get("messages") or self.fields.get("input")
        return found if isinstance(found, list) else []

    @property
    def max_answer_tokens(self) -> int:
        """The largest length of one answer that the caller set, in tokens; 0 if the length is not bounded."""
        fields = self.fields
        return max([_count(fields.get(name)) for name in _MAX_TOKENS_FIELDS])

    @property
    def num_answers(self) -> int:
        """How many answers are generated at most: candidates per prompt, times prompts."""
        prompts = self.fields.get("prompt")
        is_several = isinstance(prompts, list) and bool(prompts) and isinstance(prompts[0], str | list)
        num_prompts = len(prompts) if is_several else 1  # type: ignore[arg-type]
        return num_prompts * max(1, _count(self.fields.get("n")), _count(self.fields.get("best_of")))

    @property
    def wants_no_usage(self) -> bool:
        """Whether this is a stream of the kind that can end with token counts, and the caller did not ask for them."""
        options = self.fields.get("stream_options")
        asked = isinstance(options, dict) and options.get("include_usage")
        return self.stream and not asked and ("messages" in self.fields or "prompt" in self.fields)

    def with_usage(self) -> JsonBody:
        """The same body, asking for token counts at the stream's end."""
        options = self.fields.get("stream_options")
        asked = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        fields = {**self.fields, "stream_options": asked}
        return JsonBody(orjson.dumps(fields), fields)

    def with_model(self, name: str) -> bytes:
        """The same body with another ``model``."""
        value = orjson.dumps(name)
        raw = self.raw
        first = raw.find(b'"model"')
        if self.model is not None and first >= 0 and raw.find(b'"model"', first + 1) < 0 and b"\\u006" not in raw:
            match = _MODEL_VALUE.match(raw, first)
            if match and orjson.loads(match.group(1)) == self.model:
                return raw[: match.start(1)] + value + raw[match.end(1) :]
        return orjson.dumps({**self.fields, "model": name})


def parse_body(raw: bytes) -> JsonBody:
    """Read a request's body.

    Raises:
        BadRequest: If it is not a JSON object, or ``model`` is not a string.
    """
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise BadRequest(f"The body is not valid JSON ({where}): {error.msg}.") from None
    if not isinstance(fields, dict):
        raise BadRequest(f"The body must be a JSON object, not {_kind_of(fields)}.")
    model = fields.get("model")
    if model is not None and not isinstance(model, str):
        raise BadRequest(f"'model' must be a string, not {_kind_of(model)}.", param="model")
    return JsonBody(raw, fields)


def _count(value: object) -> int:
    """A number of tokens or answers as engines read it, which accept 5.0 and "5" too; 0 for anything else."""
    if isinstance(value, str) and value.strip().isdecimal():
        value = float(value)
    return int(value) if isinstance(value, int | float) and value > 0 and value == value // 1 else 0


def _kind_of(value: object) -> str:
    names = {list: "an array", dict: "an object", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


class ModelRewriter:
    """Replaces the engine's name for the model by the caller's, in an answer's bytes.

    Args:
        engine_name: What the engine writes into ``model``.
        asked_name: What the caller wrote there.
    """

    def __init__(self, engine_name: str, asked_name: str) -> None:
        self._old = b'"model":' + orjson.dumps(engine_name)
        self._new = b'"model":' + orjson.dumps(asked_name)

    def __call__(self, payload: bytes) -> bytes:
        return payload.replace(self._old, self._new)


class EventSplitter:
    """Cuts a stream of server-sent events at event boundaries, so that no event is seen in halves.

    Args:
        max_event_bytes: An event that grows larger is passed on in pieces rather than held.
    """

    def __init__(self, max_event_bytes: int = 16 << 20) -> None:
        self._tail = b""
        self._max_event_bytes = max_event_bytes

    def feed(self, chunk: bytes) -> bytes:
        """Take what arrived and give back all whole events, possibly none."""
        if self._tail:
            chunk = self._tail + chunk
        last = chunk.rfind(b"\n\n")
        end = last + 2 if last >= 0 else 0
        if not end and len(chunk) >= self._max_event_bytes:
            end = len(chunk)
        self._tail = chunk[end:]
        return chunk[:end]

    def rest(self) -> bytes:
        """What is left at the stream's end: an event that was never closed, usually nothing."""
        tail, self._tail = self._tail, b""
        return tail
