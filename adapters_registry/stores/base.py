"""The seams to whatever keeps the records. All methods are async and raise only errors of `adapters_registry.errors`.

Every change is one transaction that also raises the library's revision, so that other gateways on the same database see
by one cheap number that they must read again. A method has returned only when its change is durable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from adapters_registry.decisions import DecisionPage, DecisionQuery, DecisionRecord, Feedback
from adapters_registry.key_limits import KeyLimits, Reservation, Used
from adapters_registry.records import NOBODY, AdapterRecord, AuditEntry, Change, KeyRecord, LibraryChanges
from adapters_registry.states import AdapterState


class AdapterReader(Protocol):
    """Looking things up."""

    async def find(self, name: str, version: str | None = None) -> AdapterRecord | None:
        """A version in any state, or (without `version`) the name's active one."""
        ...

    async def list(self, *states: AdapterState) -> tuple[AdapterRecord, ...]:
        """Records in these states (all if none is given), sorted by name, then by age."""
        ...

    async def revision(self) -> int:
        """A number that rises with every change of adapters or keys."""
        ...


class Follower(Protocol):
    """Staying up to date without reading everything again."""

    async def changes(self, since: int, *states: AdapterState) -> LibraryChanges:
        """What was done to versions and to keys after the change of that number.

        All records in these states, sorted as by `list`, if `since` is 0, if very many have changed, or if this is not
        the database that gave the number.
        """
        ...


class AdapterWriter(Protocol):
    """Recording versions."""

    async def register(self, record: AdapterRecord, change: Change = NOBODY) -> AdapterRecord:
        """Record a version as registered; one that was rejected, is draining or retired begins anew.

        The same version again changes card, examples and publication if they differ, and nothing else. Raises
        NameTaken if the version's first 8 digits are used for another content.
        """
        ...

    async def activate(self, record: AdapterRecord, change: Change = NOBODY) -> AdapterRecord:
        """Register a version and make it the name's active one at once, without probes; the one before drains."""
        ...

    async def set_examples(self, name: str, version: str, examples: Sequence[str], *, actor: str = "") -> AdapterRecord:
        """Replace a version's examples. Raises AdapterNotFound."""
        ...


class AdapterStates(Protocol):
    """Taking versions through their life; `adapters_registry.states` says what may follow what."""

    async def move(
        self,
        name: str,
        version: str,
        state: AdapterState,
        change: Change = NOBODY,
        *,
        expected: AdapterState | None = None,
        share: float | None = None,
        report: Mapping[str, Any] | None = None,
        through: Sequence[AdapterState] = (),
    ) -> AdapterRecord:
        """Take a version to a state. The name's active version drains for a new one, its canary is ready again.

        Args:
            expected: The state that it must be in, so that of several who try only one succeeds.
            share: Of a canary.
            report: What the probes found.
            through: States on the way, so that the whole way is gone or none of it.

        Raises:
            AdapterNotFound, WrongState.
        """
        ...

    async def retire(self, name: str, version: str, change: Change = NOBODY) -> AdapterRecord:
        """Take a version out of service at once; one that never was ready is rejected by this.

        Raises AdapterNotFound if it is not there or out of service already.
        """
        ...


class ContentLedger(Protocol):
    """Which contents' files are still needed."""

    async def contents_in_use(self) -> frozenset[str]:
        """SHA-256 of every content with a version that is not purged."""
        ...

    async def mark_purged(self, name: str, version: str, *, actor: str = "") -> str:
        """Give up a retired or rejected version's files; returns its SHA-256. Raises AdapterNotFound, NotRetired."""
        ...


class History(Protocol):
    """What was before."""

    async def versions(self, name: str) -> tuple[AdapterRecord, ...]:
        """All versions of a name, the newest first."""
        ...

    async def audit(
        self, name: str | None = None, *, limit: int = 100, before: int | None = None
    ) -> tuple[AuditEntry, ...]:
        """Who changed what, when and why: the newest first, of one name's versions or of all, older than `before`."""
        ...


class AdapterStore(AdapterReader, Follower, AdapterWriter, AdapterStates, ContentLedger, History, Protocol):
    """All that is kept about adapters."""


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
