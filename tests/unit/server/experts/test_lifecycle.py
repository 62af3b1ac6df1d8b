"""How long a start waits for the probes of a library's experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

import server.experts.lifecycle
from adapters_registry.records import AdapterRecord
from adapters_registry.states import AdapterState
from server.experts.lifecycle import Lifecycle
from server.telemetry.metrics import Metrics
from tests.support.records import record


@dataclass
class Waiting:
    """A library in which fewer versions wait each time that it is asked, down to those that never get through."""

    num: int
    num_stuck: int = 0
    num_asked: int = 0

    async def list(self, *_states: AdapterState) -> tuple[AdapterRecord, ...]:
        self.num_asked += 1
        self.num = max(self.num - 1, self.num_stuck)
        return tuple(record(f"e{number}") for number in range(self.num))


@dataclass
class Pool:
    ready: bool = True


def lifecycle_of(library: Waiting, pool: Pool) -> Lifecycle:
    parts: tuple[Any, ...] = (library, None, pool, Metrics(max_experts=1, prices={}))
    return Lifecycle(*parts, probes=True)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.experts.lifecycle, "_SHORT_S", 0.001)


async def test_as_long_as_probes_get_on_they_are_waited_for() -> None:
    library = Waiting(num=50)
    await lifecycle_of(library, Pool()).all_seen_through(patience_s=0.005)
    assert library.num == 0


async def test_a_probe_that_does_not_end_is_not_waited_for() -> None:
    library = Waiting(num=20, num_stuck=2)
    await lifecycle_of(library, Pool()).all_seen_through(patience_s=0.005)
    assert library.num == 2
    assert 20 <= library.num_asked <= 30
