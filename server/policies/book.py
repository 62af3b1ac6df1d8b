"""All policies by name: their definitions, the last attempt to fit each, and the fitted policy that serves.

Definitions come from the settings, or from disk, where this gateway or another one on the same home has stored them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import structlog

from adapters_registry.records import utc_now
from adapters_registry.visibility import Audience
from routers.base import Router, RouterConfig
from routers.errors import RouterError
from routers.registry import make_config, router_class
from server.errors import BadRequest, NotFound
from server.policies.definitions import PolicySpec, PolicyStore
from server.policies.live import LivePolicy

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Waiting:
    """No fit was attempted yet."""


@dataclass(frozen=True, slots=True)
class Fitting:
    """A fit is running, after this many failures in a row."""

    num_failures: int = 0


@dataclass(frozen=True, slots=True)
class Fitted:
    """The last attempt succeeded, or the stored artefact could be used."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The last attempt failed.

    Attributes:
        num_failures: Failures in a row.
        retry_at: Time of the next attempt, on the follower's clock; None if no other attempt is needed for this data.
        version: Version of the data that could not be fitted; other data is tried at once.
    """

    error: str
    num_failures: int
    retry_at: float | None
    version: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """An operator cancelled the fit; a costly method waits for the next request to fit."""


Attempt = Waiting | Fitting | Fitted | Failed | Cancelled


@dataclass(slots=True)
class Entry:
    """A defined policy: what it should be, how the last fit went, and what serves now.

    Attributes:
        live: The fitted policy that serves; after a redefinition the previous one, until its successor is fitted.
        behind_since: When the library first had experts that `live` does not know; None if it knows all.
    """

    spec: PolicySpec
    kind: type[Router]
    config: RouterConfig
    attempt: Attempt = field(default_factory=Waiting)
    live: LivePolicy | None = None
    behind_since: datetime | None = None

    @classmethod
    def of(cls, spec: PolicySpec) -> Entry:
        """Create the entry of a definition. Raises RouterError for an unknown router or bad options."""
        router = spec.settings.router
        return cls(spec, router_class(router), make_config(router, spec.settings.options))

    @property
    def embedder(self) -> str:
        """Name of the policy's embedder; empty for the gateway's own."""
        return self.spec.settings.embedder or self.kind.card.embedder

    @property
    def reads_scores(self) -> bool:
        """Whether the policy may learn from the table of scores."""
        return self.kind.card.reads_scores or self.spec.settings.subset is not None

    @property
    def artefact_config(self) -> dict[str, Any]:
        """Everything that the policy's artefact depends on, apart from the data."""
        subset = self.spec.settings.subset
        return self.config.model_dump(mode="json") | {"subset": subset.model_dump(mode="json") if subset else None}

    def stop_retrying(self) -> None:
        """Plan no other attempt after a failure, because what serves fits the data or is fitted on request only."""
        if isinstance(self.attempt, Failed):
            self.attempt = replace(self.attempt, retry_at=None)

    @property
    def error(self) -> str:
        """Why the last attempt did not succeed; empty if it did."""
        match self.attempt:
            case Failed(error=error):
                return error
            case Cancelled():
                return "cancelled"
            case _:
                return ""


class PolicyBook:
    """The entries of all policies.

    Args:
        specs: The policies of the settings.
        store: The definitions that were made through the admin API.
        now: Date and time, for `Entry.behind_since`.
    """

    def __init__(
        self,
        specs: Sequence[PolicySpec],
        store: PolicyStore,
        *,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._store = store
        self._now = now
        self._entries = {spec.name: Entry.of(spec) for spec in specs}
        self._required = frozenset(self._entries)
        self._changing = asyncio.Lock()
        self._library: frozenset[str] = frozenset()
        self._stamp: dict[str, tuple[int, int]] = {}

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries, in the order of their definition."""
        return tuple(self._entries.values())

    def get(self, name: str) -> Entry:
        """Return an entry; raises NotFound."""
        if name not in self._entries:
            raise NotFound(f"There is no policy {name[:100]!r}.")
        return self._entries[name]

    def is_current(self, entry: Entry) -> bool:
        """Return whether this entry was neither removed nor redefined."""
        return self._entries.get(entry.spec.name) is entry

    @property
    def live(self) -> dict[str, LivePolicy]:
        """The policies that can decide, by name, each with the audience of its present definition."""
        return {name: _for_its_audience(entry.live, entry) for name, entry in self._entries.items() if entry.live}

    @property
    def missing(self) -> dict[str, str]:
        """Policies of the settings that cannot decide yet, and why."""
        return {
            name: self._entries[name].error or "not fitted yet"
            for name in sorted(self._required)
            if self._entries[name].live is None
        }

    @property
    def pending(self) -> dict[str, Audience]:
        """All policies that cannot decide yet, with their audiences."""
        return {name: e.spec.settings.audience for name, e in self._entries.items() if e.live is None}

    # -- definitions ----------------------------------------------------------------------------------------------

    async def read_stored(self) -> None:
        """Apply definitions and removals on this home by an earlier process or by another gateway."""
        async with self._changing:
            stamp = await asyncio.to_thread(self._store.stamp)
            if stamp == self._stamp:
                return
            defined = {name for name, (defined_at, _) in stamp.items() if defined_at}
            for name in self._entries.keys() - defined - self._required:
                del self._entries[name]
            for spec in await asyncio.to_thread(self._store.load):
                known = self._entries.get(spec.name)
                if spec.name in self._required:
                    log.warning("policy is also in the settings, which win", policy=spec.name)
                elif known is None or known.spec != spec:
                    try:
                        self._replace(Entry.of(spec))
                    except RouterError as error:
                        log.error("policy cannot be used", policy=spec.name, error=str(error))
            self._stamp = stamp

    async def has_unread(self) -> bool:
        """Return whether `read_stored` has something to read: a policy was defined, fitted or removed since."""
        return await asyncio.to_thread(self._store.stamp) != self._stamp

    def refuse_settings(self, name: str) -> None:
        """Raise BadRequest if the settings define this policy."""
        if name in self._required:
            raise BadRequest(
                f"The policy {name!r} is defined in the settings; change it there, or choose another name.",
                param="name",
            )

    async def define(self, entry: Entry) -> None:
        """Store a definition and take it up; what served under its name serves until the new policy is fitted."""
        async with self._changing:
            await asyncio.to_thread(self._store.save, entry.spec)
            self._replace(entry)

    async def remove(self, name: str) -> None:
        """Remove a policy with its artefacts; raises NotFound, or BadRequest for one of the settings."""
        self.refuse_settings(name)
        self.get(name)
        async with self._changing:
            await asyncio.to_thread(self._store.remove, name)
            self._entries.pop(name, None)

    def _replace(self, entry: Entry) -> None:
        before = self._entries.get(entry.spec.name)
        if before is not None:
            entry.live, entry.behind_since = before.live, before.behind_since
        self._entries[entry.spec.name] = entry

    # -- the library's experts ------------------------------------------------------------------------------------

    def note_library(self, expert_ids: Collection[str]) -> None:
        """Note which experts policies should know."""
        self._library = frozenset(expert_ids)
        self.update_lag()

    def update_lag(self) -> None:
        """Note since when each policy lacks experts; to be called when policies or the library changed."""
        for entry in self._entries.values():
            if not self.num_missing(entry):
                entry.behind_since = None
            elif entry.behind_since is None:
                entry.behind_since = self._now()

    def num_missing(self, entry: Entry) -> int:
        """Return how many experts of the library the policy does not know."""
        return len(self._library - entry.live.known_ids if entry.live else self._library)

    # -- for operators --------------------------------------------------------------------------------------------

    def describe(self, entry: Entry) -> dict[str, Any]:
        """Return a policy's definition and state, for operators."""
        live = entry.live
        return {
            "name": entry.spec.name,
            "state": self._state(entry),
            "num_missing_experts": self.num_missing(entry),
            "behind_since": entry.behind_since.isoformat(timespec="seconds") if entry.behind_since else None,
            "error": entry.error or None,
            "origin": entry.spec.origin,
            **entry.spec.settings.model_dump(mode="json", exclude={"data"}),
            "options": entry.config.model_dump(mode="json"),
            "num_samples": len(entry.spec.samples),
            "num_experts": len(live.expert_ids) if live else None,
            "data_version": live.version if live else None,
            "embedded_by": live.embedder.name if live else None,
            "provenance": dict(live.provenance) if live else None,
        }

    def _state(self, entry: Entry) -> str:
        if entry.live is None:
            match entry.attempt:
                case Failed():
                    return "failed"
                case Cancelled():
                    return "cancelled"
                case _:
                    return "fitting"
        if entry.live.stale:
            return "stale"
        return "following" if self.num_missing(entry) else "ready"


def _for_its_audience(live: LivePolicy, entry: Entry) -> LivePolicy:
    """Return a policy with its present audience, which may differ from the one it was fitted with."""
    audience = entry.spec.settings.audience
    return live if live.audience == audience else replace(live, audience=audience)
