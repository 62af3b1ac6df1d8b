"""Which conversation a request belongs to, and what was chosen for it before.

Callers of chat endpoints send the whole conversation every time, so its first messages name it, together with the key;
a caller may name it itself by OpenAI's ``prompt_cache_key``, and one that the engine keeps (``conversation`` of
``/v1/responses``) has its id. Memory is this process's own, bounded, and by recency;
what a gateway does not remember is decided anew, by the same hash everywhere.
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
"""A subject, and what was chosen."""

_USER_ROLES = frozenset({"user", "human"})


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation as a request shows it.

    Attributes:
        digest: Its name; equal for all its turns.
        goes_on: Whether this request carries an earlier answer.
        may_go_on: Whether a later request can be told to belong to it.
    """

    digest: bytes
    goes_on: bool
    may_go_on: bool = True

    def lot(self, subject: str) -> float:
        """A number in [0, 1) that is this conversation's for a subject: drawn evenly, always the same."""
        drawn = hashlib.blake2b(subject.encode(), digest_size=8, key=self.digest).digest()
        return int.from_bytes(drawn) / 2**64


def conversation_of(key_id: str, body: JsonBody, request_id: str) -> Conversation:
    """The conversation of a request's body; a lone prompt is a conversation by itself, named by the request's id."""
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
    first_user = next((place for place, role in enumerate(roles) if role in _USER_ROLES), None)
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
    """What was chosen for each conversation, by subject: the version of an expert, the expert of a policy."""

    def __init__(self, max_remembered: int = MAX_REMEMBERED) -> None:
        self._max_remembered = max_remembered
        self._chosen: OrderedDict[tuple[bytes, str], tuple[str, float]] = OrderedDict()
        self._last_used: OrderedDict[str, float] = OrderedDict()

    def get(self, conversation: Conversation, subject: str) -> str | None:
        """What was remembered for a conversation that goes on."""
        if not conversation.goes_on:
            return None
        found = self._chosen.get((conversation.digest, subject))
        return None if found is None else found[0]

    def put(self, conversation: Conversation, subject: str, choice: str) -> None:
        """Remember a choice, and that it is in use, if the conversation may go on."""
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
        """How long ago a choice was last used, in seconds; infinite if that is not known."""
        last = self._last_used.get(choice)
        return float("inf") if last is None else time.monotonic() - last
