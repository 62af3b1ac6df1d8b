"""The overview: traffic by expert, and rows of experts."""

from dataclasses import replace

import pytest

from adapters_registry.states import AdapterState
from server.engine.base import Residency
from server.engine.fake import FakeEngine
from server.engine.pool import Replica
from server.engine.recipes import parse
from server.insights.overview import decisions_of, expert_rows, traffic_by_expert, trial_counts
from server.telemetry.metrics import Metrics
from server.telemetry.prices import Price
from tests.unit.server.policies.test_manager import record
from tests.unit.server.telemetry.test_metrics import outcome


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
    traffic = traffic_by_expert(filled().traffic)
    shown = traffic["sql"].as_json()
    assert (shown["requests"], shown["errors"]) == (5, 1)  # a client that disconnects is not an error
    assert (shown["input_tokens"], shown["output_tokens"], shown["cost"]) == (12, 20, 12.0)
    assert 0.64 < shown["p50_s"] < 1.28 and 40.96 < shown["p95_s"] < 81.92
    assert 0.1 < shown["ttft_p50_s"] < 0.25
    assert traffic["base"].as_json()["ttft_p50_s"] is None
    assert decisions_of(filled().traffic, "auto") == {"decisions": 4, "abstentions": 1}
    assert decisions_of(filled().traffic, "unused") == {"decisions": 0, "abstentions": 0}
    assert trial_counts(filled().traffic)["sql", "canary"] == {"requests": 1, "errors": 1}


def test_rows_tell_versions_of_a_name_apart() -> None:
    active = record("sql", "a prompt")
    canary = replace(active, version="1" * 8, state=AdapterState.CANARY, share=0.1)
    quiet = record("dates")
    replica = Replica("http://one", FakeEngine())  # type: ignore[arg-type]
    replica.residency = Residency(frozenset({canary.expert_id}))
    replica.begin(parse(canary.expert_id))
    counts = filled().traffic
    rows = expert_rows([canary, quiet, active], traffic_by_expert(counts), trial_counts(counts), [replica])
    by_id = {row["id"]: row for row in rows}
    assert [row["name"] for row in rows] == ["dates", "sql", "sql"]
    assert by_id[active.expert_id]["traffic"]["requests"] == 5
    assert by_id[active.expert_id]["trial"] == {"requests": 3, "errors": 0}
    assert by_id[canary.expert_id]["traffic"] is None
    assert by_id[canary.expert_id]["trial"] == {"requests": 1, "errors": 1}
    assert by_id[quiet.expert_id]["traffic"] is None
    assert [by_id[each.expert_id]["resident_in"] for each in (active, canary)] == [[], ["http://one"]]
    assert by_id[canary.expert_id]["in_flight"] == 1


@pytest.mark.parametrize("num", [3, 50])
def test_experts_beyond_the_bound_share_what_is_counted(num: int) -> None:
    metrics = Metrics(max_experts=1, prices={})
    for number in range(num):
        metrics.record(outcome(f"e{number}"))
    traffic = traffic_by_expert(metrics.traffic)
    rows = expert_rows([record(f"e{number}") for number in range(num)], traffic, {}, [])
    assert sum(row["traffic"] is not None for row in rows) == 1
    assert traffic["other"].requests == num - 1
