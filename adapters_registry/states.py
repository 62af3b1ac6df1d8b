"""The life of an expert's version: its states, and the one table of what may follow what.

registered → validating → ready → canary → active → draining → retired, and rejected with reasons. A version is
*offered* by its id while it is ready, canary or active, and by its bare name while it is active; a canary gets its
share of the name's traffic. A draining version only serves what began on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class AdapterState(StrEnum):
    """Where a version stands in its life; `TRANSITIONS` says what may follow what."""

    REGISTERED = "registered"
    VALIDATING = "validating"
    READY = "ready"
    CANARY = "canary"
    ACTIVE = "active"
    DRAINING = "draining"
    RETIRED = "retired"
    REJECTED = "rejected"


TRANSITIONS: Mapping[AdapterState, frozenset[AdapterState]] = {
    AdapterState.REGISTERED: frozenset({AdapterState.VALIDATING, AdapterState.READY, AdapterState.REJECTED}),
    AdapterState.VALIDATING: frozenset({AdapterState.READY, AdapterState.REJECTED, AdapterState.REGISTERED}),
    AdapterState.READY: frozenset({AdapterState.CANARY, AdapterState.ACTIVE, AdapterState.RETIRED}),
    AdapterState.CANARY: frozenset({AdapterState.ACTIVE, AdapterState.READY, AdapterState.DRAINING}),
    AdapterState.ACTIVE: frozenset({AdapterState.DRAINING}),
    AdapterState.DRAINING: frozenset({AdapterState.ACTIVE, AdapterState.RETIRED, AdapterState.REGISTERED}),
    AdapterState.RETIRED: frozenset({AdapterState.ACTIVE, AdapterState.REGISTERED}),
    AdapterState.REJECTED: frozenset({AdapterState.REGISTERED}),
}
"""A registered version becomes ready without validation where probes are off, and registered again where a gateway
ended while it probed. Retired ones were ready once, so a rollback may bring them back; what is removed before it was
ready is rejected, and has to be registered again."""

OFFERED = frozenset({AdapterState.READY, AdapterState.CANARY, AdapterState.ACTIVE})
"""States in which a version can be asked for by its id."""

SERVING = OFFERED | {AdapterState.DRAINING}
"""States in which a version may have requests under way."""

OVER = frozenset({AdapterState.RETIRED, AdapterState.REJECTED})
"""States in which a version serves nothing, so that its files may go."""


def may_become(state: AdapterState, next_state: AdapterState) -> bool:
    """Whether the table allows it."""
    return next_state in TRANSITIONS[state]
