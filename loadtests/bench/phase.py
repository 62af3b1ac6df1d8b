"""One phase of load: what the benchmark asks of the load generator, and what it gets back. Both travel as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import orjson

from bench.arrivals import Arrivals
from bench.traffic import Workload


@dataclass(frozen=True, slots=True)
class PhaseSpec:
    """What to send.

    Attributes:
        port: Of the target, on 127.0.0.1.
        workload: The requests.
        seconds: Length of the measured part.
        warmup_s: Before it, with the same load, not in the figures.
        rate: Requests a second of an open loop; None is a closed loop.
        concurrency: Callers of a closed loop; in an open one the most requests under way, more count as errors.
        arrivals: Of an open loop.
        patience_s: Wait for the last answers; what is missing then counts as an error.
    """

    port: int
    workload: Workload
    seconds: float
    warmup_s: float
    rate: float | None
    concurrency: int
    arrivals: Arrivals = "poisson"
    patience_s: float = 10.0

    def dump(self) -> bytes:
        """As JSON."""
        return orjson.dumps(asdict(self))

    @classmethod
    def load(cls, text: bytes) -> PhaseSpec:
        """The inverse of `dump`."""
        fields: dict[str, Any] = orjson.loads(text)
        return cls(**fields | {"workload": Workload(**fields["workload"])})


@dataclass(frozen=True, slots=True)
class PhaseResult:
    """What came back; lists hold one number a good answer of the measured part, times in milliseconds.

    Attributes:
        num_good: Good answers, those of the warm-up included: what the target spent its CPU time on.
        errors: Count by kind, those of the warm-up included.
        good_per_s: Good answers a second in the measured part.
        latency_ms: From the intended time of sending to the last byte.
        ttft_ms: To the body's first byte.
        overhead_ms: The gateway's own figure.
        lag_ms: From the intended to the actual time of sending: the load generator's own lateness, part of the above.
    """

    num_good: int
    errors: dict[str, int]
    good_per_s: float
    latency_ms: list[float]
    ttft_ms: list[float]
    overhead_ms: list[float]
    lag_ms: list[float]

    def dump(self) -> bytes:
        """As JSON."""
        return orjson.dumps(asdict(self))

    @classmethod
    def load(cls, text: bytes) -> PhaseResult:
        """The inverse of `dump`."""
        return cls(**orjson.loads(text))

    @property
    def num_errors(self) -> int:
        """Errors of every kind."""
        return sum(self.errors.values())
