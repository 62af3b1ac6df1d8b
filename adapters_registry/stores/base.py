"""Protocols of the record stores. All methods are async and raise only errors of `adapters_registry.errors`.

Every change is one transaction that also increases the library's revision. Other gateways on the same database poll
that number to learn that they must read again. A method returns only when its change is durable.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from adapters_registry.decisions import DecisionPage, DecisionQuery, DecisionRecord, Feedback
from adapters_registry.key_limits import KeyLimits, Reservation, Used
from adapters_registry.records import (
    NOBODY,
    AdapterRecord,
    AuditEntry,
    Change,
    KeyRecord,
    LibraryChanges,
    Transition,
)
from adapters_registry.states import AdapterState


class AdapterStore(Protocol):
    """Versions of adapters: records, states, history, and which contents are still needed."""

    async def find(self, name: str, version: str | None = None) -> AdapterRecord | None:
        """Return a version in any state, or (without `version`) the name's active one."""
        ...

    async def list(self, *states: AdapterState) -> tuple[AdapterRecord, ...]:
        """Return the records in these states (in all states if none is given), sorted by name, then by age."""
        ...

    async def versions(self, name: str) -> tuple[AdapterRecord, ...]:
        """Return all versions of a name, the newest first."""
        ...

    async def revision(self) -> int:
        """Return a number that rises with every change of adapters or keys, by any process on this database."""
        ...

    async def changes(self, since: int, *states: AdapterState) -> LibraryChanges:
        """Return what changed in versions and keys after change number `since`.

        Returns all records in these states, sorted as by `list`, if `since` is 0, if very many have changed, or if
        `since` comes from another database.
        """
        ...

    async def audit(
        self, name: str | None = None, *, limit: int = 100, before: int | None = None
    ) -> tuple[AuditEntry, ...]:
        """Return who changed what, when and why, the newest first: of one name's versions, or of all.

        Args:
            before: Only entries older than this entry number.
        """
        ...

    async def register(self, record: AdapterRecord, change: Change = NOBODY) -> AdapterRecord:
        """Record a version as registered. One that was rejected, is draining or is retired starts again.

        Registering the same version again updates card, examples and publication if they differ, and nothing else.
        Raises NameTaken if another content has the same first 8 digits.
        """
        ...

    async def activate(self, record: AdapterRecord, change: Change = NOBODY) -> AdapterRecord:
        """Register a version and activate it at once, without probes; the previous active version drains."""
        ...

    async def move(self, name: str, version: str, transition: Transition, change: Change = NOBODY) -> AdapterRecord:
        """Take a version to another state; `adapters_registry.states.TRANSITIONS` has the allowed steps.

        An activated version makes the previous one drain; a new canary makes the previous one ready again.
        Raises AdapterNotFound, WrongState.
        """
        ...

    async def retire(self, name: str, version: str, change: Change = NOBODY) -> AdapterRecord:
        """Take a version out of service at once; one that never was ready is rejected instead.

        Raises AdapterNotFound if the version is unknown or already out of service.
        """
        ...

    async def set_examples(self, name: str, version: str, examples: Sequence[str], *, actor: str = "") -> AdapterRecord:
        """Replace a version's examples. Raises AdapterNotFound."""
        ...

    async def contents_in_use(self) -> frozenset[str]:
        """Return the SHA-256 of every content that has a version which is not purged."""
        ...

    async def mark_purged(self, name: str, version: str, *, actor: str = "") -> str:
        """Release a retired or rejected version's files; returns their SHA-256. Raises AdapterNotFound, NotRetired."""
        ...


class UsageStore(Protocol):
    """Usage of keys; exact, however many gateways count at once."""

    async def reserve(self, key_id: str, limits: KeyLimits, tokens: int, now: datetime) -> Reservation:
        """Count a request with up to `tokens` tokens. Raises `OverLimit` or `TooManyAtOnce` and then counts nothing."""
        ...

    async def settle(self, reservation: Reservation, tokens: int, cost: float) -> None:
        """Record a request's actual usage, once per reservation. Its concurrency slot is free even if this raises."""
        ...

    async def used(self, key_id: str, limits: KeyLimits, now: datetime) -> tuple[Used, ...]:
        """Return the usage in each window that has a limit."""
        ...


class RunningReader(Protocol):
    """Counts of running requests."""

    async def under_way(self, key_id: str) -> int:
        """Return the running requests of a key with `max_concurrency`, over all gateways seen recently."""
        ...


class KeyStore(Protocol):
    """API keys, without their secrets."""

    async def add(self, key: KeyRecord, *, actor: str = "") -> KeyRecord:
        """Store a new key. Raises NameTaken if its id is used."""
        ...

    async def find(self, key_id: str) -> KeyRecord | None:
        """Return a key by its id, usable or not."""
        ...

    async def list(self) -> tuple[KeyRecord, ...]:
        """Return all keys, including revoked ones, oldest first."""
        ...

    async def replace_secret(self, key_id: str, digest: str, *, actor: str = "") -> KeyRecord:
        """Replace a key's secret; the old secret stops working at once. Raises KeyNotFound, also for a revoked key."""
        ...

    async def revoke(self, key_id: str, *, actor: str = "") -> KeyRecord:
        """Revoke a key permanently; idempotent. Raises KeyNotFound."""
        ...


class DecisionStore(Protocol):
    """Decisions for requests. Written asynchronously, so that a loss of power may lose the last seconds."""

    async def add(self, decisions: Sequence[DecisionRecord]) -> None:
        """Store decisions, all or none of them."""
        ...

    async def recent(self, query: DecisionQuery) -> DecisionPage:
        """Return the decisions that match, newest first, with their feedback."""
        ...

    async def prune(self, before: datetime, most: int) -> int:
        """Delete the oldest decisions and feedback before a time, at most `most` of each; returns how many."""
        ...


class FeedbackStore(Protocol):
    """Callers' feedback on answers."""

    async def rate(self, feedback: Feedback) -> tuple[DecisionRecord, bool] | None:
        """Store feedback, replacing earlier feedback on the same request.

        Returns the key's newest decision with that request id and whether this is its first feedback; None, with
        nothing stored, if there is no such decision.
        """
        ...
