"""The overview: traffic read from the metrics, quantiles as Prometheus computes them, rows of experts."""

import asyncio
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters_registry.states import AdapterState
from server.engine.base import Residency
from server.engine.fake import FakeEngine
from server.engine.pool import Replica
from server.engine.recipes import parse
from server.insights.overview import (
    MetricsReader,
    canary_counts,
    count_all,
    decisions_by_policy,
    expert_rows,
    quantile,
    traffic_by_expert,
)
from server.settings import Price
from server.telemetry.metrics import Metrics
from tests.unit.server.policies.test_manager import record
from tests.unit.server.telemetry.test_metrics import outcome

BOUNDS = (1.0, 2.0, 4.0, math.inf)


def cumulative(values: list[float]) -> dict[float, float]:
    return {bound: float(sum(value <= bound for value in values)) for bound in BOUNDS}


def test_quantiles_lie_within_their_bucket() -> None:
    assert quantile(0.5, {}) is None
    assert quantile(0.5, cumulative([])) is None
    assert quantile(0.5, cumulative([1.5, 1.5])) == 1.5
    assert quantile(0.5, cumulative([0.1] * 4)) == 0.5
    assert quantile(0.95, cumulative([9.0])) == 4.0


@given(st.lists(st.floats(0.01, 10), min_size=1), st.floats(0.01, 0.99))
def test_a_quantile_is_in_the_bucket_of_the_value_that_it_stands_for(values: list[float], q: float) -> None:
    exact = sorted(values)[max(0, math.ceil(q * len(values) - 1e-9) - 1)]
    upper = min(bound for bound in BOUNDS if exact <= bound)
    lower = max((bound for bound in BOUNDS if bound < exact), default=0.0)
    found = quantile(q, cumulative(values))
    assert found is not None
    assert min(lower, 4.0) <= found + 1e-6 and found <= min(upper, 4.0)


def filled() -> Metrics:
    metrics = Metrics(max_experts=2, prices={"sql": Price(input=1e6, output=0)})
    for status in (200, 200, 499, 500):
        seen = {"status": status, "input_tokens": 3, "output_tokens": 5, "ttft_s": 0.2, "streamed": True}
        metrics.record(outcome("sql", duration_s=1.0, trial_role="canary" if status == 500 else "active", **seen))
    metrics.record(outcome("sql", policy="other", endpoint="/v1/messages", duration_s=60.0))
    metrics.record(outcome("base", duration_s=0.1))
    for _ in range(3):
        metrics.record_decision("auto", "sql", 0.9)
    metrics.record_decision("auto", None, 0.1)
    return metrics


def test_traffic_is_added_up_over_endpoints_policies_and_statuses() -> None:
    traffic = traffic_by_expert(filled())
    shown = traffic["sql"].as_json()
    assert (shown["requests"], shown["errors"]) == (5, 1)  # whoever hung up made no error
    assert (shown["input_tokens"], shown["output_tokens"], shown["cost"]) == (12, 20, 12.0)
    assert 0.64 < shown["p50_s"] < 1.28 and 40.96 < shown["p95_s"] < 81.92
    assert 0.1 < shown["ttft_p50_s"] < 0.25
    assert traffic["base"].as_json()["ttft_p50_s"] is None
    assert decisions_by_policy(filled()) == {"auto": {"decisions": 4, "abstentions": 1}}
    assert canary_counts(filled())["sql", "canary"] == {"requests": 1, "errors": 1}


def test_rows_tell_versions_of_a_name_apart() -> None:
    active = record("sql", "a prompt")
    canary = replace(active, version="1" * 8, state=AdapterState.CANARY, share=0.1)
    quiet = record("dates")
    replica = Replica("http://one", FakeEngine())  # type: ignore[arg-type]
    replica.residency = Residency(frozenset({canary.expert_id}))
    replica.begin(parse(canary.expert_id))
    rows, rest = expert_rows([canary, quiet, active], count_all(filled()), [replica])
    by_id = {row["id"]: row for row in rows}
    assert [row["name"] for row in rows] == ["dates", "sql", "sql"]
    assert by_id[active.expert_id]["traffic"]["requests"] == 5
    assert by_id[active.expert_id]["trial"] == {"requests": 3, "errors": 0}
    assert by_id[canary.expert_id]["traffic"] is None
    assert by_id[canary.expert_id]["trial"] == {"requests": 1, "errors": 1}
    assert by_id[quiet.expert_id]["traffic"] is None
    assert [by_id[each.expert_id]["resident_in"] for each in (active, canary)] == [[], ["http://one"]]
    assert by_id[canary.expert_id]["in_flight"] == 1
    assert rest["base"]["requests"] == 1 and "other" not in rest


@pytest.mark.parametrize("num", [3, 50])
def test_experts_beyond_the_bound_share_what_is_counted(num: int) -> None:
    metrics = Metrics(max_experts=1, prices={})
    for number in range(num):
        metrics.record(outcome(f"e{number}"))
    rows, rest = expert_rows([record(f"e{number}") for number in range(num)], count_all(metrics), [])
    assert sum(row["traffic"] is not None for row in rows) == 1
    assert rest["other"]["requests"] == num - 1


async def test_several_who_look_at_once_cost_one_reading() -> None:
    metrics = filled()
    reader = MetricsReader(metrics)
    first, second = await asyncio.gather(reader.counts(), reader.counts())
    assert first is second
    assert first.traffic["sql"].requests == 5
