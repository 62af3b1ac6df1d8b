"""Metrics: labels are bounded, prices add up."""

import time

import pytest

from adapters_registry.key_limits import KeyLimits, Used, Window
from server.telemetry.drift import PolicyDrift, Profile
from server.telemetry.families import all_families
from server.telemetry.labels import BoundedLabel
from server.telemetry.metrics import Metrics
from server.telemetry.prices import Price
from server.telemetry.traffic_counts import Outcome


def outcome(expert: str, **changes: object) -> Outcome:
    fields = {"endpoint": "/v1/completions", "policy": "auto", "expert": expert, "status": 200, "duration_s": 1.0}
    return Outcome(**{**fields, **changes})  # type: ignore[arg-type]


def test_labels_are_bounded() -> None:
    label = BoundedLabel(2)
    assert [label(name) for name in ("a", "b", "c", "a", "d")] == ["a", "b", "other", "a", "other"]


def test_a_thousand_experts_make_few_series() -> None:
    metrics = Metrics(max_experts=3, prices={})
    for index in range(1000):
        metrics.record(outcome(f"e{index}", output_tokens=3))
        metrics.record_decision("auto", f"e{index}", 0.5)
    experts = {
        sample.labels["expert"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if "expert" in sample.labels
    }
    assert experts == {"e0", "e1", "e2", "other"}


def test_every_series_has_the_labels_that_its_metric_declares() -> None:
    metrics = Metrics(max_experts=3, prices={})
    metrics.record(outcome("sql", streamed=True, ttft_s=0.1, input_tokens=1, output_tokens=2, trial_role="canary"))
    metrics.record_decision("auto", None, 0.5)
    metrics.record_error("/v1/completions", "engine_error", 503)
    declared = {family.name: set(family.labels) for family in all_families()}
    collected = list(metrics.registry.collect())
    assert {family.name for family in collected} == declared.keys()
    for family in collected:
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == declared[family.name], sample.name


def test_an_experts_own_price_wins() -> None:
    prices = {"base": Price(input=1, output=1), "expert": Price(input=2, output=2), "sql": Price(input=3, output=3)}
    metrics = Metrics(max_experts=9, prices=prices)
    for expert in ("base", "dates", "sql"):
        metrics.record(outcome(expert, input_tokens=500_000, output_tokens=500_000))
    value = metrics.registry.get_sample_value
    costs = [value("moergate_cost_total", {"policy": "auto", "expert": e}) for e in ("base", "dates", "sql")]
    assert costs == pytest.approx([1, 2, 3])


def test_time_per_token_counts_from_the_first_token() -> None:
    metrics = Metrics(max_experts=1, prices={})
    metrics.record(outcome("base", duration_s=2.0, ttft_s=1.0, output_tokens=11, streamed=True))
    labels = {"endpoint": "/v1/completions", "policy": "auto", "expert": "base"}
    value = metrics.registry.get_sample_value
    assert value("gen_ai_server_time_per_output_token_seconds_sum", labels) == pytest.approx(0.1)
    assert value("gen_ai_server_time_to_first_token_seconds_sum", labels) == pytest.approx(1.0)


def test_drift_is_shown_with_bounded_labels() -> None:
    metrics = Metrics(max_experts=3, prices={})
    experts = {f"e{number:03d}": 0.001 for number in range(999)} | {"big": 0.001}
    fitting = Profile(experts, dict.fromkeys(experts, 0.5), 1000)
    traffic = Profile({"big": 0.75, "base": 0.25}, {"big": 0.9, "base": 0.2}, 2000)
    found = [PolicyDrift("auto", traffic, fitting, 1.5), PolicyDrift("bare", traffic, None, None)]
    metrics.show_drift(lambda: found)
    for _ in range(2):
        metrics.exposition()
    value = metrics.registry.get_sample_value

    def share(expert: str, of: str, name: str = "share") -> float | None:
        return value(f"moergate_expert_{name}", {"policy": "auto", "expert": expert, "of": of})

    assert (share("big", "traffic"), share("base", "traffic"), share("other", "traffic")) == (0.75, 0.25, 0.0)
    assert share("big", "traffic", "confidence") == 0.9
    assert share("other", "fitting") == pytest.approx(0.997)
    assert share("other", "fitting", "confidence") == pytest.approx(0.5)
    assert value("moergate_policy_drift", {"policy": "auto"}) == 1.5
    assert value("moergate_policy_drift", {"policy": "bare"}) is None
    found.clear()
    assert b'policy="auto"' not in metrics.exposition()


def test_feedback_is_counted_by_kind() -> None:
    metrics = Metrics(max_experts=1, prices={})
    for expert, rating in (("sql", 1.0), ("sql", 0.2), ("dates", -0.1), ("base", 0.0)):
        metrics.record_feedback("auto", expert, rating)
    metrics.record_feedback(None, "sql", 1.0)
    value = metrics.registry.get_sample_value
    counted = {
        (policy, expert, kind): value(
            "moergate_feedback_total", {"policy": policy, "expert": expert, "rating": kind}
        )
        for policy, expert, kind in (
            ("auto", "sql", "up"), ("auto", "other", "down"), ("auto", "base", "neutral"), ("none", "sql", "up"),
        )
    }  # fmt: skip
    assert list(counted.values()) == [2, 1, 1, 1]


def test_keys_are_bounded_and_priced_like_experts() -> None:
    metrics = Metrics(max_experts=2, prices={"sql": Price(input=1, output=3)})
    for key in ("team-a", "team-b", "team-c", "team-d", "team-a"):
        metrics.record(outcome("sql", key=key, input_tokens=1_000_000, output_tokens=2_000_000))
    value = metrics.registry.get_sample_value
    keys = ("team-a", "team-b", "other")
    assert [value("moergate_key_requests_total", {"key": key, "status": "200"}) for key in keys] == [2, 1, 2]
    assert [value("moergate_key_tokens_total", {"key": key, "type": "output"}) for key in keys] == [4e6, 2e6, 4e6]
    assert [value("moergate_key_cost_total", {"key": key}) for key in keys] == pytest.approx([14, 7, 14])
    assert value("moergate_key_cost_total", {"key": "team-c"}) is None


def test_refusals_count_for_the_limit_and_for_its_key() -> None:
    metrics = Metrics(max_experts=1, prices={})
    for key in ("team-a", "team-a", "team-b"):
        metrics.record_limited(key, "max_concurrency")
    value = metrics.registry.get_sample_value
    assert value("moergate_requests_limited_total", {"limit": "max_concurrency"}) == 3
    assert value("moergate_key_limited_total", {"key": "team-a", "limit": "max_concurrency"}) == 2
    assert value("moergate_key_limited_total", {"key": "other", "limit": "max_concurrency"}) == 1


def test_a_budgets_used_part_ends_with_its_window() -> None:
    metrics = Metrics(max_experts=1, prices={})
    limits = KeyLimits(budget_per_day=4.0)
    now = int(time.time())
    metrics.show_budget("team-a", limits, Used(Window("day", now - 10, now + 1000), cost=1.0))
    metrics.show_budget("team-a", limits, Used(Window("month", now - 10, now + 1000), cost=3.0))
    metrics.show_budget("team-b", limits, Used(Window("day", now - 10, now + 1000), cost=3.0))
    value = metrics.registry.get_sample_value
    assert value("moergate_key_budget_used_ratio", {"key": "team-a", "window": "day"}) == 0.25
    assert value("moergate_key_budget_used_ratio", {"key": "team-a", "window": "month"}) is None, (
        "it has no such budget"
    )
    assert value("moergate_key_budget_used_ratio", {"key": "other", "window": "day"}) is None
    metrics.show_budget("team-a", limits, Used(Window("day", now - 1000, now - 1), cost=3.0))
    assert value("moergate_key_budget_used_ratio", {"key": "team-a", "window": "day"}) == 0.0


def test_errors_carry_their_status() -> None:
    metrics = Metrics(max_experts=1, prices={})
    metrics.record_error("/v1/completions", "engine_error", 400)
    metrics.record_error("/v1/completions", "engine_error", 503)
    labels = {"endpoint": "/v1/completions", "code": "engine_error"}
    value = metrics.registry.get_sample_value
    assert [value("moergate_errors_total", {**labels, "status": s}) for s in ("400", "503")] == [1, 1]
