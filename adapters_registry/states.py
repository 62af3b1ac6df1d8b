"""The states of an expert's version, and the one table of allowed transitions.

registered → validating → ready → canary → active → draining → retired, and rejected with reasons. A version is
*offered* by its id while it is ready, canary or active, and by its bare name while it is active. A canary gets a share
of the name's traffic. A draining version serves only the requests and conversations that began on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class AdapterState(StrEnum):
    """State of a version; `TRANSITIONS` lists which may follow."""

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
"""With probes off, a registered version becomes ready without validation. A version whose gateway ended during a probe
becomes registered again. Retired versions were ready once, so a rollback may reactivate them. A version that is removed
before it was ready is rejected and must be registered again."""

OFFERED = frozenset({AdapterState.READY, AdapterState.CANARY, AdapterState.ACTIVE})
"""States in which a caller can name a version by its id."""

SERVING = OFFERED | {AdapterState.DRAINING}
"""States in which a version may have running requests."""

OVER = frozenset({AdapterState.RETIRED, AdapterState.REJECTED})
"""States in which a version serves nothing, so its files may be removed."""


def may_become(state: AdapterState, next_state: AdapterState) -> bool:
    """Return whether `TRANSITIONS` allows this step."""
    return next_state in TRANSITIONS[state]
