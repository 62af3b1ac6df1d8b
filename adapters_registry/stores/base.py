"""The seams to whatever keeps the records. All methods are async and raise only errors of `adapters_registry.errors`.

Every change is one transaction that also raises the library's revision, so that other gateways on the same database see
by one cheap number that they must read again. A method has returned only when its change is durable.
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
    """What keys have used. Exact, however many gateways count at once."""

    async def reserve(self, key_id: str, limits: KeyLimits, tokens: int, now: datetime) -> Reservation:
        """Count a request with so many tokens; raises `OverLimit` or `TooManyAtOnce`, and then has counted nothing."""
        ...

    async def settle(self, reservation: Reservation, tokens: int, cost: float) -> None:
        """Say what a request took in the end; once for each reservation. Its place is free even if this raises."""
        ...

    async def used(self, key_id: str, limits: KeyLimits, now: datetime) -> tuple[Used, ...]:
        """What was used in each window that has a limit."""
        ...


class RunningReader(Protocol):
    """What runs now."""

    async def under_way(self, key_id: str) -> int:
        """Requests of a key with `max_concurrency` that are under way, over all gateways that were seen lately."""
        ...


class KeyStore(Protocol):
    """API keys, without their secrets."""

    async def add(self, key: KeyRecord, *, actor: str = "") -> KeyRecord:
        """Keep a new key. Raises NameTaken if its id is used."""
        ...

    async def find(self, key_id: str) -> KeyRecord | None:
        """A key by its id, usable or not."""
        ...

    async def list(self) -> tuple[KeyRecord, ...]:
        """All keys, oldest first, also revoked ones."""
        ...

    async def replace_secret(self, key_id: str, digest: str, *, actor: str = "") -> KeyRecord:
        """Give a key another secret; the old one ends with that. Raises KeyNotFound, also for a revoked key."""
        ...

    async def revoke(self, key_id: str, *, actor: str = "") -> KeyRecord:
        """Make a key unusable for good; again is no error. Raises KeyNotFound."""
        ...


class DecisionStore(Protocol):
    """What was decided for requests. Written behind their backs, so that a loss of power may take the last seconds."""

    async def add(self, decisions: Sequence[DecisionRecord]) -> None:
        """Keep decisions, all or none of them."""
        ...

    async def recent(self, query: DecisionQuery) -> DecisionPage:
        """Those that are wanted, newest first, with their feedback."""
        ...

    async def prune(self, before: datetime, most: int) -> int:
        """Forget the oldest decisions and opinions of before, at most so many of each; returns how many went."""
        ...


class FeedbackStore(Protocol):
    """What callers thought of answers."""

    async def rate(self, feedback: Feedback) -> tuple[DecisionRecord, bool] | None:
        """Keep an opinion instead of an earlier one of the same request.

        Returns the newest decision with that request id of that key and whether this is its first opinion; None, with
        nothing kept, if there is no such decision.
        """
        ...
