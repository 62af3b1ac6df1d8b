"""Authentication: finds the principal behind a request's headers.

A key is sent as ``Authorization: Bearer …`` (OpenAI) or ``x-api-key`` (Anthropic). As long as no key exists, any
program that reaches the loopback address may use the gateway and its admin API. The first key ends that.
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
    """The caller of a request.

    Attributes:
        key_id: The key's public id, or ``anonymous``.
        scopes: Any of ``infer``, ``admin`` and ``metrics``.
        sight: Experts and policies that the key may use.
        limits: Usage limits; None if there are none.
        name: The operator's name for the key; also the metrics' label.
    """

    key_id: str
    scopes: frozenset[str]
    sight: Sight = EVERYTHING
    limits: KeyLimits | None = None
    name: str = "none"

    def require(self, scope: str, *others: str) -> None:
        """Raise `PermissionDenied` unless the key has this scope or one of the others."""
        if self.scopes.isdisjoint((scope, *others)):
            raise PermissionDenied(f"This key lacks the scope {scope!r}; ask the operator for one that has it.")


ANONYMOUS = Principal("anonymous", frozenset({"infer", "admin"}))


class _KnownKey(NamedTuple):
    """A key of the store, and its principal."""

    record: KeyRecord
    principal: Principal


@dataclass(slots=True)
class _Memory:
    """Answers of the store since its last change; None stands for a secret of no key."""

    keys: OrderedDict[str, _KnownKey | None] = field(default_factory=OrderedDict)
    needs_no_key: bool | None = None


class Authenticator:
    """Checks keys against the store, and remembers the answers until `forget` reports a change.

    Args:
        keys: Store of all keys.
    """

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys
        self._memory = _Memory()
        self._asking = asyncio.Lock()

    def forget(self, key_ids: Collection[str] | None = None) -> None:
        """Forget these keys and all unknown secrets, or everything, so that the store is asked again.

        Other keys stay remembered, so that they keep working while the store is unreachable. A lookup that is running
        at this moment may still return the old state, which is not remembered.
        """
        if key_ids is None:
            self._memory = _Memory()
        elif key_ids:
            known = self._memory.keys.items()
            kept = ((digest, key) for digest, key in known if key and key.record.key_id not in key_ids)
            self._memory = _Memory(OrderedDict(kept))

    async def authorise(self, headers: Mapping[str, str], scope: str, *others: str) -> Principal:
        """Return the principal behind a request; it must have this scope or one of the others.

        Raises:
            AuthenticationFailed: As `authenticate`.
            PermissionDenied: As `authenticate`, or the principal has none of the scopes.
        """
        principal = await self.authenticate(headers)
        principal.require(scope, *others)
        return principal

    async def authenticate(self, headers: Mapping[str, str]) -> Principal:
        """Return the principal behind a request.

        Raises:
            AuthenticationFailed: A key is needed, and there is none or an invalid one.
            PermissionDenied: A web page of another origin called a gateway that needs no key.
        """
        secret = _secret_of(headers)
        known = await self._find(secret) if secret else None
        if known is not None and known.record.is_usable():
            return known.principal
        if await self._needs_no_key():  # even with an unknown key: OpenAI clients always send one
            _refuse_foreign_page(headers)
            return ANONYMOUS
        if secret is None:
            raise AuthenticationFailed("No API key. Send it as 'Authorization: Bearer <key>'.")
        raise AuthenticationFailed("This API key is unknown, revoked or expired.")

    async def _find(self, secret: str) -> _KnownKey | None:
        """Return the key with this secret."""
        memory = self._memory
        digest = hashlib.sha256(secret.encode()).hexdigest()
        if digest not in memory.keys:
            async with self._asking:
                record = await find_key(self._keys, secret)
                memory.keys[digest] = None if record is None else _KnownKey(record, _principal_of(record))
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
    """Refuse what a browser sends for another site.

    Without keys, loopback is the only protection. A web page must not get around it by DNS rebinding or a blind post.
    """
    origin = headers.get("origin")
    if not _is_loopback(f"//{headers.get('host', '')}") or (origin and not _is_loopback(origin)):
        raise PermissionDenied(
            "Without API keys, this gateway answers only programs on its own machine. "
            "Create a key with 'moergate keys create' and send it."
        )


@lru_cache(maxsize=64)
def _is_loopback(url: str) -> bool:
    try:
        return urlsplit(url).hostname in LOOPBACK_NAMES
    except ValueError:  # for example an unmatched bracket
        return False
