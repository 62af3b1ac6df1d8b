"""Identifies the conversation of a request, and remembers what was chosen for it.

Clients of chat endpoints send the whole conversation every time, so its first messages and the key identify it. A
client may name it with OpenAI's ``prompt_cache_key``. A conversation that the engine stores (``conversation`` of
``/v1/responses``) has an id.

Each process has its own memory, which forgets the least recently used entries. A forgotten choice is made again, by
the same hash in every gateway.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass

import orjson

from server.engine.body import JsonBody

MAX_REMEMBERED = 20_000

Choice = tuple[str, str]
"""A subject, and what was chosen for it."""

_USER_ROLES = frozenset({"user", "human"})


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation as one of its requests shows it.

    Attributes:
        digest: Identity of the conversation, equal for all its requests.
        goes_on: Whether this request contains an earlier answer.
        may_go_on: Whether a later request could be recognised as part of the conversation.
    """

    digest: bytes
    goes_on: bool
    may_go_on: bool = True

    def lot(self, subject: str) -> float:
        """Return this conversation's number in [0, 1) for a subject: uniformly distributed, and always the same."""
        drawn = hashlib.blake2b(subject.encode(), digest_size=8, key=self.digest).digest()
        return int.from_bytes(drawn) / 2**64


def conversation_of(key_id: str, body: JsonBody, request_id: str) -> Conversation:
    """Return the conversation of a body; a single prompt is a separate conversation, identified by the request's id."""
    named = body.fields.get("prompt_cache_key")
    turns = body.turns
    roles = [turn.get("role") if isinstance(turn, dict) else None for turn in turns]
    goes_on = "assistant" in roles
    kept = body.fields.get("conversation")
    kept = kept.get("id") if isinstance(kept, dict) else kept
    if isinstance(kept, str) and kept:
        return Conversation(_digest(key_id, kept), goes_on=True)
    if isinstance(named, str) and named:
        return Conversation(_digest(key_id, named), goes_on)
    first_user = next((index for index, role in enumerate(roles) if role in _USER_ROLES), None)
    if first_user is None:
        return Conversation(_digest(key_id, request_id), goes_on=False, may_go_on=False)
    opening = orjson.dumps(turns[: first_user + 1])
    return Conversation(_digest(key_id, opening), goes_on)


def _digest(key_id: str, name: str | bytes) -> bytes:
    text = name if isinstance(name, bytes) else name.encode("utf-8", "replace")
    return hashlib.blake2b(
        text, digest_size=16, person=hashlib.blake2b(key_id.encode(), digest_size=16).digest()
    ).digest()


class ConversationMemory:
    """Remembers what was chosen for each conversation, by subject: the version of an expert, the expert of a policy.

    Args:
        max_remembered: Maximum number of remembered choices.
    """

    def __init__(self, max_remembered: int = MAX_REMEMBERED) -> None:
        self._max_remembered = max_remembered
        self._chosen: OrderedDict[tuple[bytes, str], tuple[str, float]] = OrderedDict()
        self._last_used: OrderedDict[str, float] = OrderedDict()

    def get(self, conversation: Conversation, subject: str) -> str | None:
        """Return the choice of a conversation that goes on, if one is remembered."""
        if not conversation.goes_on:
            return None
        found = self._chosen.get((conversation.digest, subject))
        return None if found is None else found[0]

    def put(self, conversation: Conversation, subject: str, choice: str) -> None:
        """Remember a choice and the time of its use, if the conversation may go on."""
        if not conversation.may_go_on:
            return
        now = time.monotonic()
        key = (conversation.digest, subject)
        self._chosen[key] = (choice, now)
        self._chosen.move_to_end(key)
        self._last_used[choice] = now
        self._last_used.move_to_end(choice)
        for memory in (self._chosen, self._last_used):
            while len(memory) > self._max_remembered:
                memory.popitem(last=False)

    def idle_s(self, choice: str) -> float:
        """Return the time since a choice was last used, in seconds; infinity if unknown."""
        last = self._last_used.get(choice)
        return float("inf") if last is None else time.monotonic() - last
