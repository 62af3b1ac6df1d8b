"""From a phase's result to figures and verdicts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from bench.stats import percentile

from load.phase import Fault, LoadResult
from load.stack import Outage

WRONG = frozenset(
    {
        "wrong expert",
        "wrong version",
        "wrong weight",
        "a version that was not there",
        "abstained",
        "another model in the answer",
        "404 for an expert that is there",
        "the engine was asked for another recipe than the header says",
    }
)
"""Faults of routing: another answer than was asked for."""

_INJECTED = frozenset(
    {
        "connection lost",
        "connection lost in the middle",
        "error in the stream",
        "no answer in time",
        "no connection",
        "order without an answer",
        "stream without end",
        "status 502",
        "status 503",
        "status 504",
        "order refused: 502",
        "order refused: 503",
        "registered, but not routable in time",
    }
)
"""What a process that is down makes of requests."""


@dataclass(frozen=True, slots=True)
class Slo:
    """What counts as good service: time to the first token, and time per token after it."""

    ttft_ms: float
    tpot_ms: float


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one phase.

    Attributes:
        num_sent: Requests of the measured part.
        per_s: Right answers a second.
        goodput_per_s: Of them those within the SLO.
        good_share: Of all requests that were due, those right and within the SLO.
        ttft_ms, tpot_ms, total_ms: Percentiles 50, 90 and 99.
        lag_ms: 99th percentile of the driver's own lateness, part of the times above.
        num_right: Answers by the right experts, by kind.
        num_absent, num_changing, num_echoed: As in `LoadResult`.
        wrong, unexplained, injected: Faults by kind: of routing; of service without a reason; while something was down.
        num_limited: 429.
        num_unsent: Not sent, for too many were under way.
    """

    num_sent: int
    per_s: float
    goodput_per_s: float
    good_share: float
    ttft_ms: tuple[float, float, float]
    tpot_ms: tuple[float, float, float]
    total_ms: tuple[float, float, float]
    lag_ms: float
    num_right: Counter[str]
    num_absent: int
    num_changing: int
    num_echoed: int
    wrong: Counter[str]
    unexplained: Counter[str]
    injected: Counter[str]
    num_limited: int
    num_unsent: int

    @classmethod
    def of(cls, result: LoadResult, slo: Slo, outages: Sequence[Outage] = ()) -> Figures:
        """Of a result; faults while something was down on purpose are injected ones."""
        wrong: Counter[str] = Counter()
        unexplained: Counter[str] = Counter()
        injected: Counter[str] = Counter()
        for fault in result.faults:
            if fault.what in WRONG:
                wrong[fault.what] += 1
            elif fault.what in _INJECTED and _is_within(fault, outages):
                injected[fault.what] += 1
            else:
                unexplained[fault.what] += 1
        if result.num_faults > len(result.faults):
            unexplained["more, not kept"] = result.num_faults - len(result.faults)
        within = sum(
            ttft <= slo.ttft_ms and tpot <= slo.tpot_ms
            for ttft, tpot in zip(result.ttft_ms, result.tpot_ms, strict=True)
        )
        num_due = result.num_sent + result.num_unsent
        return cls(
            num_sent=result.num_sent,
            per_s=len(result.due) / result.seconds,
            goodput_per_s=within / result.seconds,
            good_share=within / num_due if num_due else math.nan,
            ttft_ms=_percentiles(result.ttft_ms),
            tpot_ms=_percentiles(result.tpot_ms),
            total_ms=_percentiles(result.total_ms),
            lag_ms=percentile(result.lag_ms, 99),
            num_right=Counter(result.num_right),
            num_absent=result.num_absent,
            num_changing=result.num_changing,
            num_echoed=result.num_echoed,
            wrong=wrong,
            unexplained=unexplained,
            injected=injected,
            num_limited=result.num_limited,
            num_unsent=result.num_unsent,
        )


@dataclass(frozen=True, slots=True)
class Trend:
    """A straight line through samples over time, by least squares.

    Attributes:
        per_hour: Slope.
        per_hour_error: Its standard error, which takes neighbouring samples for independent and so is an optimist.
        start, end: The line's values at the first and last sample.
    """

    per_hour: float
    per_hour_error: float
    start: float
    end: float

    @classmethod
    def of(cls, at: Sequence[float], values: Sequence[float]) -> Trend:
        """Through at least three samples; NaN of fewer. `at` in seconds."""
        if len(at) < 3:
            return cls(math.nan, math.nan, math.nan, math.nan)
        x, y = np.asarray(at) - at[0], np.asarray(values, dtype=float)
        slope, start = np.polyfit(x, y, 1)
        rest = y - (start + slope * x)
        error = math.sqrt(float(rest @ rest) / (len(x) - 2) / float(((x - x.mean()) ** 2).sum()))
        return cls(float(slope) * 3600, error * 3600, float(start), float(start + slope * x[-1]))

    @property
    def growth(self) -> float:
        """Growth along the line, as a share of its start."""
        return (self.end - self.start) / self.start


def _percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    return percentile(values, 50), percentile(values, 90), percentile(values, 99)


def _is_within(fault: Fault, outages: Sequence[Outage]) -> bool:
    return any(fault.sent <= outage.until and fault.done >= outage.since for outage in outages)
