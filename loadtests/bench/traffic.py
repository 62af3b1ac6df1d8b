"""What is asked, and what a right answer is. Answers are those of ``moergate fake-engine``: ``word0 word1 …``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import orjson

from bench.client import Exchange

Prompts = Literal["few", "fresh"]

PATH = "/v1/chat/completions"
NUM_FEW = 16
_MONTHS = ("January", "March", "April", "June", "July", "September", "October", "December")
_CONTENT = re.compile(rb'"content":"([^"]*)"')


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests of one kind.

    Attributes:
        model: What goes into ``model``.
        stream: Whether answers are streams.
        prompts: ``few`` repeats 16 prompts, so that their embeddings are cached; ``fresh`` never repeats one.
        num_tokens: Length of every answer.
        seed: Sets fresh prompts of one phase apart from another's.
    """

    model: str
    stream: bool
    prompts: Prompts
    num_tokens: int
    seed: int

    def body(self, index: int) -> bytes:
        """The body of the request with this number."""
        serial = index % NUM_FEW if self.prompts == "few" else self.seed * 1_000_000 + index
        fields = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt(serial)}],
            "max_tokens": self.num_tokens,
            "temperature": 0,
            "stream": self.stream,
        }
        return orjson.dumps(fields)

    def fault(self, exchange: Exchange) -> str | None:
        """What is wrong with an answer, in few words; None if it is whole, and of the model that was asked."""
        if exchange.status != 200:
            return f"status {exchange.status}"
        return self._stream_fault(exchange.body) if self.stream else self._whole_fault(exchange.body)

    def _whole_fault(self, body: bytes) -> str | None:
        try:
            answer = orjson.loads(body)
            text = answer["choices"][0]["message"]["content"]
        except (orjson.JSONDecodeError, LookupError, TypeError):
            return "not a chat completion"
        if answer.get("model") != self.model:
            return "another model"
        return None if text == self._text() else "incomplete"

    def _stream_fault(self, body: bytes) -> str | None:
        if not body.endswith(b"data: [DONE]\n\n"):
            return "stream without end"
        if body.count(b'"model":' + orjson.dumps(self.model)) != self.num_tokens:
            return "another model"
        text = b"".join(_CONTENT.findall(body)).decode()
        return None if text.rstrip() == self._text() else "incomplete"

    def _text(self) -> str:
        return " ".join(f"word{index}" for index in range(self.num_tokens))


def prompt(serial: int) -> str:
    """A prompt of a dozen words, another one for every number."""
    month = _MONTHS[serial % len(_MONTHS)]
    return f"Write {month} {serial % 27 + 1}, {1950 + serial % 90} as an ISO 8601 date for order number {serial}."
