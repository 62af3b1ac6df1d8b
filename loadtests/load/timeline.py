"""Which version of an expert may answer at which moment, from changes that were asked for and acknowledged.

A change takes effect somewhere between the moment it was sent and the moment it was acknowledged; in between both the
old and the new state are right. Moments are seconds of one monotonic clock. None as a version is: not in the library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class State:
    """A state of one name, and when it may have held."""

    version: str | None
    since: float
    until: float = math.inf


class Timeline:
    """States of names over time.

    Args:
        initial: Name to version, of what was there before anything is asked.
    """

    def __init__(self, initial: Mapping[str, str]) -> None:
        self._states = {name: [State(version, -math.inf)] for name, version in initial.items()}
        self._begun: dict[str, float] = {}

    def begin(self, name: str, at: float) -> None:
        """A change of this name is being sent."""
        self._begun[name] = at

    def end(self, name: str, version: str | None, at: float) -> None:
        """The change was acknowledged, or what has become of it was asked: this is the state now."""
        begun = self._begun.pop(name)
        states = self._states.setdefault(name, [State(None, -math.inf)])
        if states[-1].version != version:
            states[-1].until = at
            states.append(State(version, begun))

    def now(self, name: str) -> str | None:
        """The last state that is certain."""
        states = self._states.get(name)
        return states[-1].version if states else None

    def is_changing(self, name: str) -> bool:
        """Whether a change is under way."""
        return name in self._begun

    def possible(self, name: str, sent: float, done: float) -> set[str | None]:
        """Every version that may have answered a request that was under way from `sent` to `done`.

        Ask when no change of the name is under way any more.
        """
        states = self._states.get(name, [State(None, -math.inf)])
        return {state.version for state in states if state.since <= done and state.until >= sent}

    def library(self) -> dict[str, str]:
        """What should be in the library now: name to version."""
        return {name: states[-1].version for name, states in self._states.items() if states[-1].version is not None}

    def is_disturbed(self, name: str, sent: float, done: float) -> bool:
        """Whether a change of the name may have taken effect meanwhile."""
        return name in self._begun or len(self.possible(name, sent, done)) > 1
