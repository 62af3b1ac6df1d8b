"""Authentication: from a request's headers to a principal.

A key comes as ``Authorization: Bearer …`` (OpenAI) or ``x-api-key`` (Anthropic). While no key exists, and
only then, everybody who can reach the loopback address is let in with all scopes; the first key ends that.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

from adapters_registry.key_limits import NO_LIMITS, KeyLimits
from adapters_registry.keys import find_key
from adapters_registry.records import KeyRecord
from adapters_registry.stores.base import KeyStore
from adapters_registry.visibility import EVERYTHING, Sight
from server.errors import AuthenticationFailed, PermissionDenied

MAX_REMEMBERED = 10_000
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks.

    Attributes:
        key_id: The key's public id, or ``anonymous``.
        scopes: Any of ``infer``, ``admin`` and ``metrics``.
        sight: Which experts and policies it may use.
        limits: How much it may use; None if there is no limit.
        name: What the operator called the key; the metrics show it.
    """

    key_id: str
    scopes: frozenset[str]
    sight: Sight = EVERYTHING
    limits: KeyLimits | None = None
    name: str = "none"

    def require(self, scope: str, *others: str) -> None:
        """Raise `PermissionDenied` unless the key has the scope, or one of the others."""
        if self.scopes.isdisjoint((scope, *others)):
            raise PermissionDenied(f"This key lacks the scope {scope!r}; ask the operator for one that has it.")


ANONYMOUS = Principal("anonymous", frozenset({"infer", "admin"}))


class _Known(NamedTuple):
    """A key that the store has, and who comes with it."""

    record: KeyRecord
    principal: Principal


@dataclass(slots=True)
class _Memory:
    """What the store has answered since its last change."""

    keys: OrderedDict[str, _Known | None] = field(default_factory=OrderedDict)
    needs_no_key: bool | None = None


class Authenticator:
    """Checks keys against the store, and remembers the answers until the store changes.

    `forget` is called with every change of keys.
    """

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys
        self._memory = _Memory()
        self._asking = asyncio.Lock()

    def forget(self, key_ids: Collection[str] | None = None) -> None:
        """Ask the store again from now on: about these keys and secrets that were none, or about everything.

        Others are remembered, so that they go on should the store be away. What is being asked for at this moment is
        answered from before the change, and not remembered.
        """
        if key_ids is None:
            self._memory = _Memory()
        elif key_ids:
            known = self._memory.keys.items()
            kept = ((digest, key) for digest, key in known if key and key.record.key_id not in key_ids)
            self._memory = _Memory(OrderedDict(kept))

    async def authorise(self, headers: Mapping[str, str], scope: str, *others: str) -> Principal:
        """The principal behind a request, who must have the scope, or one of the others.

        Raises:
            AuthenticationFailed: See `authenticate`.
            PermissionDenied: Likewise, or for lack of a scope.
        """
        principal = await self.authenticate(headers)
        principal.require(scope, *others)
        return principal

    async def authenticate(self, headers: Mapping[str, str]) -> Principal:
        """The principal behind a request.

        Raises:
            AuthenticationFailed: No key where one is needed, or one that is not good.
            PermissionDenied: A web page of another origin reaches for a gateway that needs no key.
        """
        secret = _secret_of(headers)
        known = await self._find(secret) if secret else None
        if known is not None and known.record.is_usable():
            return known.principal
        if await self._needs_no_key():  # even with a wrong key: clients of the openai kind always send one
            _refuse_foreign_page(headers)
            return ANONYMOUS
        if secret is None:
            raise AuthenticationFailed("No API key. Send it as 'Authorization: Bearer <key>'.")
        raise AuthenticationFailed("This API key is unknown, revoked or expired.")

    async def _find(self, secret: str) -> _Known | None:
        """The key whose secret this is."""
        memory = self._memory
        digest = hashlib.sha256(secret.encode()).hexdigest()
        if digest not in memory.keys:
            async with self._asking:
                record = await find_key(self._keys, secret)
                memory.keys[digest] = None if record is None else _Known(record, _principal_of(record))
            while len(memory.keys) > MAX_REMEMBERED:
                memory.keys.popitem(last=False)
        return memory.keys.get(digest)

    async def _needs_no_key(self) -> bool:
        memory = self._memory
        if memory.needs_no_key is None:
            async with self._asking:
                if memory.needs_no_key is None:
                    memory.needs_no_key = all(key.revoked_at is not None for key in await self._keys.list())
        return memory.needs_no_key


def _principal_of(record: KeyRecord) -> Principal:
    limits = None if record.limits == NO_LIMITS else record.limits
    return Principal(record.key_id, record.scopes, record.sight, limits, record.name)


def _secret_of(headers: Mapping[str, str]) -> str | None:
    authorization = headers.get("authorization")
    if authorization:
        scheme, _, secret = authorization.partition(" ")
        return secret.strip() if scheme.lower() == "bearer" and secret.strip() else None
    return headers.get("x-api-key")


def _refuse_foreign_page(headers: Mapping[str, str]) -> None:
    """Without keys, loopback is the only guard: a web page must not get past it by DNS rebinding or a blind post."""
    origin = headers.get("origin")
    if not _is_loopback(f"//{headers.get('host', '')}") or (origin and not _is_loopback(origin)):
        raise PermissionDenied(
            "Without API keys this gateway answers only to programs on its own machine. "
            "Create a key with 'moergate keys create' and send it."
        )


@lru_cache(maxsize=64)
def _is_loopback(url: str) -> bool:
    try:
        return urlsplit(url).hostname in LOOPBACK_NAMES
    except ValueError:  # such as an opening bracket without its closing one
        return False
