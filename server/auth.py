"""Authentication: from a request's headers to a principal.

A key comes as ``Authorization: Bearer …`` (OpenAI) or ``x-api-key`` (Anthropic). While no key exists, and
only then, everybody who can reach the loopback address is let in with all scopes; the first key ends that.
Look-ups are cached for two seconds, which is also how long a revoked key lives on.
"""

from __future__ import annotations

import fnmatch
import hashlib
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from adapters_registry.keys import verify
from adapters_registry.records import KeyRecord
from adapters_registry.stores.base import KeyStore
from server.errors import AuthenticationFailed, PermissionDenied

CACHE_S = 2.0
MAX_CACHED = 10_000
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks.

    Attributes:
        key_id: The key's public id, or ``anonymous``.
        scopes: Any of ``infer`` and ``admin``.
        experts: Glob patterns of expert names that the key may use.
    """

    key_id: str
    scopes: frozenset[str]
    experts: tuple[str, ...] = ("*",)

    @property
    def sees_all(self) -> bool:
        """Whether no expert is hidden."""
        return "*" in self.experts

    def may_use(self, name: str) -> bool:
        """Whether the expert of this name is visible."""
        return self.sees_all or any(fnmatch.fnmatchcase(name, pattern) for pattern in self.experts)

    def require(self, scope: str) -> None:
        """Raise `PermissionDenied` unless the key has the scope."""
        if scope not in self.scopes:
            raise PermissionDenied(f"This key lacks the scope {scope!r}; ask the operator for one that has it.")


ANONYMOUS = Principal("anonymous", frozenset({"infer", "admin"}))


class Authenticator:
    """Checks keys against the store."""

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys
        self._cache: OrderedDict[bytes, tuple[float, Principal]] = OrderedDict()
        self._open_until = 0.0
        self._closed_until = 0.0

    async def authenticate(self, headers: Mapping[str, str]) -> Principal:
        """The principal behind a request.

        Raises:
            AuthenticationFailed: No key where one is needed, or one that is not good.
            PermissionDenied: A web page of another origin reaches for a gateway that needs no key.
        """
        secret = _secret_of(headers)
        if secret is None:
            if await self._is_open():
                _refuse_foreign_page(headers)
                return ANONYMOUS
            raise AuthenticationFailed("No API key. Send it as 'Authorization: Bearer <key>'.")
        digest = hashlib.sha256(secret.encode()).digest()
        now = time.monotonic()
        cached = self._cache.get(digest)
        if cached and cached[0] > now:
            return cached[1]
        record = await self._find(secret)
        if record is None:
            if await self._is_open():  # clients of the openai kind always send some key
                _refuse_foreign_page(headers)
                return ANONYMOUS
            raise AuthenticationFailed("This API key is unknown, revoked or expired.")
        principal = Principal(record.key_id, record.scopes, record.experts)
        self._cache[digest] = (now + CACHE_S, principal)
        self._cache.move_to_end(digest)
        while len(self._cache) > MAX_CACHED:
            self._cache.popitem(last=False)
        return principal

    async def _find(self, secret: str) -> KeyRecord | None:
        parts = secret.split("-", 2)
        if len(parts) != 3 or parts[0] != "mg":
            return None
        record = await self._keys.find(parts[1])
        if record is None or record.revoked_at is not None or not verify(secret, record.hash):
            return None
        if record.expires_at is not None and record.expires_at <= datetime.now(UTC):
            return None
        return record

    async def _is_open(self) -> bool:
        now = time.monotonic()
        if now < self._open_until:
            return True
        if now < self._closed_until:
            return False
        if any(key.revoked_at is None for key in await self._keys.list()):
            self._closed_until = now + CACHE_S
            return False
        self._open_until = now + CACHE_S
        return True


def _secret_of(headers: Mapping[str, str]) -> str | None:
    authorization = headers.get("authorization")
    if authorization:
        scheme, _, secret = authorization.partition(" ")
        return secret.strip() if scheme.lower() == "bearer" and secret.strip() else None
    return headers.get("x-api-key")


def _refuse_foreign_page(headers: Mapping[str, str]) -> None:
    """Without keys, loopback is the only guard: a web page must not get past it by DNS rebinding or a blind post."""
    host = urlsplit(f"//{headers.get('host', '')}").hostname
    origin = headers.get("origin")
    if host not in LOOPBACK_NAMES or (origin and urlsplit(origin).hostname not in LOOPBACK_NAMES):
        raise PermissionDenied(
            "Without API keys this gateway answers only to programs on its own machine. "
            "Create a key with 'moergate keys create' and send it."
        )
