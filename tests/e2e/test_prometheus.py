"""Every query of every panel, alert and rule has an answer once a real Prometheus has read a gateway at work."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.observed import PROMETHEUS, Query, Rule, queries, rules, selectors_of, variables
from tests.support.prometheus import SKIPPED, Prometheus, find_program
from tests.support.watched import KEYS, shown, watched_gateway

PROGRAM, PROMTOOL = find_program("prometheus"), find_program("promtool")
pytestmark = pytest.mark.skipif(PROGRAM is None or PROMTOOL is None, reason=SKIPPED)

EXPECTED = {
    "MoergateKeyBudgetNearlyUsed",
    "MoergateKeyLimited",
    "MoergateFailuresFast",
    "MoergateFailuresSlow",
    "MoergateRequestsTurnedAway",
}
"""Alerts that the traffic of this test must raise or be about to."""

QUIET = {"MoergateEngineRestarting", "MoergatePolicyStale", "MoergateExpertUnused", "MoergateResidencyThrashing"}
"""Alerts that nothing in it should raise."""


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus after it has watched a gateway at work; queries refer to the end of that."""
    folder = tmp_path_factory.mktemp("prometheus")
    with asyncio.Runner() as runner:
        watching = watched_gateway(str(PROGRAM), folder)
        yield runner.run(anext(watching))
        runner.run(watching.aclose())


@pytest.mark.parametrize("query", queries(), ids=str)
def test_every_panels_query_has_data(query: Query, prometheus: Prometheus) -> None:
    values = prometheus.values(shown(query.expr))
    assert values


@pytest.mark.parametrize("name", variables())
def test_every_variable_has_values(name: str, prometheus: Prometheus) -> None:
    metric, label = variables()[name].removeprefix("label_values(").removesuffix(")").split(", ")
    assert prometheus.get(f"label/{label}/values", **{"match[]": metric})


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.name)
def test_every_selector_of_a_rule_finds_series(rule: Rule, prometheus: Prometheus) -> None:
    """What an alert compares is there, so that it can come true; when it does, `tests/deploy/alerts.yml` says."""
    prometheus.query(rule.expr)
    for selector in selectors_of(rule.expr):
        assert prometheus.query(selector), selector
    if not rule.is_alert:
        assert prometheus.values(rule.name) and prometheus.values(rule.expr)


def test_prometheus_evaluates_all_rules(prometheus: Prometheus) -> None:
    found = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in found} == {rule.name for rule in rules()}
    assert {(rule["health"], rule.get("lastError", "")) for rule in found} == {("ok", "")}


def test_the_traffic_raises_the_alerts_that_it_should(prometheus: Prometheus) -> None:
    raised = {series["metric"]["alertname"] for series in prometheus.query("ALERTS")}
    assert raised >= EXPECTED and not raised & QUIET
    (budget,) = prometheus.query('ALERTS{alertname="MoergateKeyBudgetNearlyUsed"}')
    assert (budget["metric"]["key"], budget["metric"]["window"]) == ("team-c", "day")


def test_keys_are_told_apart(prometheus: Prometheus) -> None:
    def by_key(expr: str) -> dict[str, float]:
        return {series["metric"]["key"]: float(series["value"][1]) for series in prometheus.query(expr)}

    requests = by_key("sum by (key) (moergate_key_requests_total)")
    assert requests.keys() == KEYS.keys()
    assert sum(requests.values()) == sum(prometheus.values("moergate_requests_total"))
    assert by_key("moergate_key_cost_total") == pytest.approx(by_key("sum by (key) (moergate_key_tokens_total)"))
    limits = {
        (each["metric"]["key"], each["metric"]["limit"]) for each in prometheus.query("moergate_key_limited_total")
    }
    assert limits >= {("team-b", "requests_per_minute"), ("team-c", "budget_per_day")}


@pytest.mark.parametrize(
    "command", [("check", "config", "--syntax-only", "prometheus.yml"), ("check", "rules", "rules/*.yml")], ids=" ".join
)
def test_promtool_finds_nothing_wrong(command: tuple[str, ...]) -> None:
    *words, pattern = command
    files = [str(path) for path in PROMETHEUS.glob(pattern)]
    done = subprocess.run([str(PROMTOOL), *words, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
