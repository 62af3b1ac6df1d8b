"""One request of a load test: what is asked, which experts should answer, and whether they did.

Who answered is seen twice: in the header ``x-moergate-recipe``, which is the gateway's word, and, against the fake
engine, in ``system_fingerprint``, which is the engine's own word for the model that it was asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import orjson
from bench.client import Exchange

from load.timeline import Timeline

Kind = Literal["base", "expert", "version", "mix", "gate", "auto"]
KINDS: tuple[Kind, ...] = ("base", "expert", "version", "mix", "gate", "auto")
ECHO = "fake:"

_EXPERT = re.compile(r"([a-z0-9][a-z0-9_.-]*)@([0-9a-f]{8})(?:\*([0-9.]+))?")
_FINGERPRINT = re.compile(rb'"system_fingerprint":"([^"]*)"')
_CONTENT = re.compile(rb'"content":"[^"]')
_FAULT = re.compile(rb'"error":\s*\{')


@dataclass(frozen=True, slots=True)
class Asked:
    """A request.

    Attributes:
        kind: How the expert is named.
        model: What went into ``model``.
        experts: Name and weight of those that should answer; weight 0 where none is asked for.
        version: Of kind ``version``: the one that was asked for.
        stream: Whether the answer is a stream.
        num_tokens: Length of the answer, if the engine makes it as long as it may be.
    """

    kind: Kind
    model: str
    experts: tuple[tuple[str, float], ...]
    version: str | None
    stream: bool
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Answered:
    """What came back, as far as it is judged.

    Attributes:
        sent, done: Moments of sending and of the last byte.
        status: HTTP status.
        recipe: The header.
        echoes: What the engine says that it was asked for; empty if it does not say.
        num_tokens: Events with text in a stream; of a whole answer 0.
        fault: What is wrong with the answer as such; empty if it is whole.
        excerpt: The end of an answer with a fault.
    """

    sent: float
    done: float
    status: int
    recipe: str
    echoes: frozenset[str]
    num_tokens: int
    fault: str
    excerpt: str = ""


def read(asked: Asked, exchange: Exchange, sent: float) -> Answered:
    """Take from an answer what is judged."""
    body = exchange.body
    echoes = frozenset(text.decode() for text in _FINGERPRINT.findall(body))
    echoes = frozenset(text[len(ECHO) :] for text in echoes if text.startswith(ECHO))
    num_tokens = len(_CONTENT.findall(body)) if asked.stream else 0
    fault = _fault(asked, exchange.status, body, num_tokens, is_fake=bool(echoes))
    excerpt = body[-200:].decode("utf-8", "replace") if fault else ""
    return Answered(sent, exchange.done_at, exchange.status, exchange.recipe, echoes, num_tokens, fault, excerpt)


def _fault(asked: Asked, status: int, body: bytes, num_tokens: int, *, is_fake: bool) -> str:
    if status != 200:
        return f"status {status}"
    if asked.stream:
        if not body.endswith(b"data: [DONE]\n\n"):
            return "error in the stream" if _FAULT.search(body) else "stream without end"
        return "incomplete" if is_fake and num_tokens != asked.num_tokens else ""
    try:
        answer = orjson.loads(body)
        answer["choices"][0]["message"]["content"]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return "not a chat completion"
    return "" if answer.get("model") == asked.model else "another model in the answer"


def judge(asked: Asked, answered: Answered, timeline: Timeline) -> str:
    """``right``, ``absent`` (404 for what was not there), ``changing`` (not to be told), or what is wrong."""
    possible = {name: timeline.possible(name, answered.sent, answered.done) for name, _ in asked.experts}
    if answered.status == 404 and asked.kind != "auto":
        may_be_absent = any(None in states or asked.version not in (None, *states) for states in possible.values())
        may_be_absent |= asked.kind == "version" and any(len(states) > 1 for states in possible.values())
        return "absent" if may_be_absent else "404 for an expert that is there"
    if answered.fault:
        return answered.fault
    if answered.echoes and answered.echoes != {answered.recipe} and not answered.recipe.startswith("set:"):
        return "the engine was asked for another recipe than the header says"
    found = _EXPERT.findall(answered.recipe)
    if asked.kind == "auto":
        return _judge_routed(asked, found, answered, timeline)
    if {name for name, _, _ in found} != set(possible) or len(found) != len(possible):
        return "wrong expert"
    weights = dict(asked.experts)
    for name, version, weight in found:
        if asked.version is not None and version != asked.version:
            return "wrong version"
        if version not in possible[name]:
            return "a version that was not there"
        if asked.kind == "mix" and float(weight) != weights[name]:
            return "wrong weight"
    return "right"


def _judge_routed(asked: Asked, found: list[tuple[str, str, str]], answered: Answered, timeline: Timeline) -> str:
    for name, version, _ in found:
        if version not in timeline.possible(name, answered.sent, answered.done):
            return "a version that was not there"
    ((wanted, _),) = asked.experts
    if [(wanted, asked.version)] == [(name, version) for name, version, _ in found]:
        return "right"
    if timeline.is_disturbed(wanted, answered.sent, answered.done):
        return "changing"
    return "wrong expert" if found else "abstained"
