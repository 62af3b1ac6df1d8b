"""Figures and verdicts of a phase, and the line through memory."""

from __future__ import annotations

import math

import numpy as np
import pytest
from load.figures import Figures, Slo, Trend
from load.mix import Mixture
from load.phase import Address, Fault, LoadResult, LoadSpec
from load.sections import Row, Section, checks_of
from load.stack import Outage
from load.watch import Usage

SLO = Slo(ttft_ms=100, tpot_ms=10)


def result(*faults: Fault) -> LoadResult:
    times = {"ttft_ms": [50.0, 50.0, 150.0, 50.0], "tpot_ms": [5.0, 5.0, 5.0, 50.0], "total_ms": [60.0] * 4}
    return LoadResult(
        started=0.0, seconds=2.0, num_sent=8, num_right={"expert": 4}, due=[0.1] * 4, lag_ms=[1.0] * 4,
        faults=list(faults), num_faults=len(faults), **times,
    )  # fmt: skip


def test_goodput_counts_what_is_within_the_slo_of_all_that_was_sent() -> None:
    figures = Figures.of(result(), SLO)
    assert (figures.per_s, figures.goodput_per_s, figures.good_share) == (2.0, 1.0, 0.25)
    assert figures.ttft_ms[0] == 50


def test_faults_are_injected_only_while_something_was_down() -> None:
    outage = Outage("engine", 10.0, 12.0)
    faults = [
        Fault(11.0, 11.1, "status 503", "expert"),
        Fault(9.5, 10.1, "connection lost in the middle", "expert"),
        Fault(12.5, 12.6, "status 503", "expert"),
        Fault(11.0, 11.1, "status 500", "expert"),
        Fault(11.0, 11.1, "wrong expert", "expert"),
    ]
    figures = Figures.of(result(*faults), SLO, [outage])
    assert figures.injected == {"status 503": 1, "connection lost in the middle": 1}
    assert figures.unexplained == {"status 503": 1, "status 500": 1}
    assert figures.wrong == {"wrong expert": 1}


def test_faults_that_were_not_kept_are_not_forgotten() -> None:
    many = result()
    many.num_faults = 3
    assert Figures.of(many, SLO).unexplained == {"more, not kept": 3}


@pytest.mark.parametrize(
    ("fault", "holds"), [(None, [True] * 3), ("wrong expert", [False, True, True]), ("status 500", [True, False, True])]
)
def test_wrong_experts_and_unexplained_failures_fail_the_run(fault: str | None, holds: list[bool]) -> None:
    found = result(*([Fault(1, 2, fault, "auto")] if fault else []))
    section = Section("s", "S", "", checks=checks_of([Row("r", Figures.of(found, SLO), Usage())]))
    assert [check.holds for check in section.checks] == holds
    assert section.holds == all(holds)


def test_trend_is_the_least_squares_line() -> None:
    at = [100.0 + 10 * n for n in range(50)]
    values = [200 + 0.5 * n + (-1) ** n for n in range(50)]
    trend = Trend.of(at, values)
    slope, start = np.polyfit(np.arange(50) * 10, values, 1)
    assert trend.per_hour == pytest.approx(slope * 3600)
    assert trend.start == pytest.approx(start)
    assert trend.growth == pytest.approx((slope * 490) / start)
    assert 0 < trend.per_hour_error < trend.per_hour


def test_flat_memory_has_no_growth() -> None:
    trend = Trend.of([0, 1, 2, 3], [100.0] * 4)
    assert trend.growth == pytest.approx(0, abs=1e-12)
    assert math.isnan(Trend.of([0, 1], [1, 2]).per_hour)


def test_specs_and_results_travel_as_json() -> None:
    spec = LoadSpec(Address(80, key="k"), Mixture(3, kinds={"auto": 1}), {"a": "1"}, 1.0, 0.5, None, 4)
    assert LoadSpec.load(spec.dump()) == spec
    found = result(Fault(1, 2, "status 500", "auto", "why"))
    assert LoadResult.load(found.dump()) == found
