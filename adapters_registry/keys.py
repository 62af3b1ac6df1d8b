"""API keys: generating and verifying them.

A key is ``mg-<8 hex id>-<43 characters>``: a public id that finds the record, and 256 random bits. A plain SHA-256 of
such a secret is safe to store: no dictionary attack exists that a slow password hash would have to resist. Checking a
key therefore costs microseconds on the hot path. The plaintext is shown once and never stored.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from datetime import datetime

from adapters_registry.key_limits import NO_LIMITS, KeyLimits
from adapters_registry.records import KeyRecord, utc_now
from adapters_registry.stores.base import KeyStore
from adapters_registry.visibility import Sight

_KEY = re.compile(r"mg-([0-9a-f]{8})-[A-Za-z0-9_-]{43}")


def generate_key(key_id: str | None = None) -> tuple[str, str, str]:
    """Generate a key, or a new secret for an existing one; returns (key_id, plaintext, hash)."""
    key_id = key_id or secrets.token_hex(4)
    plaintext = f"mg-{key_id}-{secrets.token_urlsafe(32)}"
    return key_id, plaintext, hash_key(plaintext)


def hash_key(plaintext: str) -> str:
    """Return the SHA-256 of the whole key, in hex."""
    return hashlib.sha256(plaintext.encode("utf-8", "surrogatepass")).hexdigest()


def key_id_of(plaintext: str) -> str | None:
    """Return the public id inside a key; None if the text is not formed like a key."""
    match = _KEY.fullmatch(plaintext)
    return match[1] if match else None


def verify(plaintext: str, stored_hash: str) -> bool:
    """Return whether a key has this hash, in constant time."""
    return hmac.compare_digest(hash_key(plaintext), stored_hash)


def new_key(
    name: str,
    *,
    scopes: Iterable[str] = ("infer",),
    experts: Iterable[str] = ("*",),
    expires_at: datetime | None = None,
    policies: Iterable[str] = ("*",),
    tags: Iterable[str] = (),
    tenant: str = "",
    limits: KeyLimits = NO_LIMITS,
) -> tuple[KeyRecord, str]:
    """Create a record to store with `KeyStore.add`, and the plaintext to show once."""
    key_id, plaintext, hashed = generate_key()
    record = KeyRecord(
        key_id=key_id,
        name=name,
        hash=hashed,
        scopes=frozenset(scopes),
        created_at=utc_now(),
        expires_at=expires_at,
        sight=Sight(tuple(experts), tuple(policies), tuple(tags), tenant),
        limits=limits,
    )
    return record, plaintext


async def find_key(store: KeyStore, plaintext: str) -> KeyRecord | None:
    """Return the usable record of this key; None if it is unknown, wrong, revoked or expired."""
    key_id = key_id_of(plaintext)
    record = await store.find(key_id) if key_id else None
    if record is None or not verify(plaintext, record.hash) or not record.is_usable():
        return None
    return record
