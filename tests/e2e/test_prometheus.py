"""A real Prometheus reads a gateway at work; every query of every panel, alert and rule must then have an answer.

The gateway has keys, two policies, experts, prices, streams, abstentions, refusals for limits and for want of room, and
requests that fail. The engine is a double; its own metrics are a recorded scrape of a real one.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from adapters_registry.keys import new_key
from adapters_registry.usage import KeyLimits
from server.engine.fake import FakeEngine
from tests.e2e.conftest import EXAMPLES, register_examples
from tests.support.observed import (
    ENGINE_METRICS,
    PROMETHEUS,
    Query,
    Rule,
    queries,
    rules,
    selectors_of,
    variables,
    waits_for,
)
from tests.support.prometheus import SKIPPED, GrowingMetrics, Prometheus, config_for, find_program, running_prometheus
from tests.support.servers import Running, http_server, running_gateway

PROGRAM, PROMTOOL = find_program("prometheus"), find_program("promtool")
pytestmark = pytest.mark.skipif(PROGRAM is None or PROMTOOL is None, reason=SKIPPED)

NUM_SCRAPES = 8
PRICES = {"base": {"input": 1e6, "output": 1e6}, "expert": {"input": 1e6, "output": 1e6}}  # one a token
KEYS = {
    "team-a": KeyLimits(requests_per_minute=100_000),
    "team-b": KeyLimits(requests_per_minute=3, max_concurrency=1),
    "team-c": KeyLimits(budget_per_day=100.0, budget_per_month=1000.0),
}
SHOWN = {"$__rate_interval": "10s", "$__range": "1m", **{f"${name}": ".+" for name in variables()}}
"""What Grafana puts in the place of variables; for all it has ``.*``, which would match labels that are absent too."""

EXPECTED = {
    "MoergateKeyBudgetNearlyUsed",
    "MoergateKeyLimited",
    "MoergateFailuresFast",
    "MoergateFailuresSlow",
    "MoergateRequestsTurnedAway",
}
"""Alerts that the traffic of this test must raise or be about to."""


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus after it has watched a gateway at work; queries refer to the end of that."""
    folder = tmp_path_factory.mktemp("prometheus")
    with asyncio.Runner() as runner:
        server = _watch(folder)
        yield runner.run(anext(server))
        runner.run(server.aclose())


async def _watch(folder: Path) -> AsyncIterator[Prometheus]:
    engine = FakeEngine(ttft_s=0.01, tokens_per_s=1000)
    policies = {"auto": {"router": "knn"}, "centroid": {"router": "centroid"}}
    crowded: dict[str, Any] = {"max_concurrency": 4, "max_queue": 4, "prices": PRICES, "policies": policies}
    async with (
        http_server(GrowingMetrics(ENGINE_METRICS.read_text("utf-8"))) as exporter,
        running_gateway(folder / "home", engine, count_stream_tokens=True, **crowded) as gateway,
    ):
        await register_examples(gateway, folder)
        async with _clients(gateway) as clients:
            targets = {"moergate": urlsplit(gateway.url).netloc, "vllm": urlsplit(exporter).netloc}
            key = clients.pop("prometheus").headers["authorization"].removeprefix("Bearer ")
            config = config_for(folder, targets, key)
            with running_prometheus(str(PROGRAM), config) as server:
                while not await _has_seen_enough(server):
                    await _round(engine, clients)
                server.at = time.time()
                yield server


@asynccontextmanager
async def _clients(gateway: Running) -> AsyncIterator[dict[str, httpx.AsyncClient]]:
    """A client for each key."""
    clients = {}
    for name, limits in {"prometheus": KeyLimits(), **KEYS}.items():
        scope = "metrics" if name == "prometheus" else "infer"
        record, secret = new_key(name, scopes=[scope], limits=limits)
        await gateway.gateway.library.keys.add(record)
        headers = {"authorization": f"Bearer {secret}"}
        clients[name] = httpx.AsyncClient(base_url=gateway.url, headers=headers, timeout=30)
    while (await clients["team-a"].get("/v1/models")).status_code != 200:
        await asyncio.sleep(0.05)  # the gateway sees keys of other processes within a second
    try:
        yield clients
    finally:
        for client in clients.values():
            await client.aclose()


async def _has_seen_enough(server: Prometheus) -> bool:
    seen = await asyncio.to_thread(server.values, f"count_over_time(up[1m]) >= {NUM_SCRAPES}")
    return len(seen) == 2


async def _round(engine: FakeEngine, clients: dict[str, httpx.AsyncClient]) -> None:
    """Some of everything that can happen to requests."""
    a, b, c = clients["team-a"], clients["team-b"], clients["team-c"]
    prompts = [example for examples in EXAMPLES.values() for example in examples]
    for policy in ("auto", "centroid"):
        calls = [_ask(a, policy, text, stream=bool(index % 2)) for index, text in enumerate(prompts[:4])]
        await asyncio.gather(*calls, _ask(b, policy, prompts[0]))
    await asyncio.gather(_ask(a, "auto", "zzz qqq xxx"), _ask(a, "sql", "x"), _ask(a, "base", "x", stream=True))
    await asyncio.gather(_ask(b, "base", "x"), _ask(b, "base", "x"), _ask(c, "base", "x"), _ask(a, "absent", "x"))
    await asyncio.gather(*(_ask(a, "base", "crowd") for _ in range(16)))
    engine.break_after = 2
    for model in ("dates", "auto", "base"):
        await asyncio.gather(*(_ask(a, model, prompts[0], stream=True) for _ in range(3)))
    engine.break_after = None


async def _ask(client: httpx.AsyncClient, model: str, text: str, *, stream: bool = False) -> int:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 6, "stream": stream}
    return (await client.post("/v1/chat/completions", json=body)).status_code


def shown(expr: str) -> str:
    """A panel's query as Grafana sends it."""
    for name, value in sorted(SHOWN.items(), reverse=True):
        expr = expr.replace(name, value)
    assert "$" not in expr
    return expr


@pytest.mark.parametrize("query", queries(), ids=str)
def test_every_panels_query_has_data(query: Query, prometheus: Prometheus) -> None:
    values = prometheus.values(shown(query.expr))
    assert values or waits_for(query.expr)


@pytest.mark.parametrize("name", variables())
def test_every_variable_has_values(name: str, prometheus: Prometheus) -> None:
    metric, label = variables()[name].removeprefix("label_values(").removesuffix(")").split(", ")
    assert prometheus.get(f"label/{label}/values", **{"match[]": metric})


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.name)
def test_every_selector_of_a_rule_finds_series(rule: Rule, prometheus: Prometheus) -> None:
    """What an alert compares is there, so that it can come true; when it does, `tests/deploy/alerts.yml` says."""
    prometheus.query(rule.expr)
    for selector in selectors_of(rule.expr):
        assert prometheus.query(selector) or waits_for(selector), selector
    if not rule.is_alert:
        assert prometheus.values(rule.name) and prometheus.values(rule.expr)


def test_prometheus_evaluates_all_rules(prometheus: Prometheus) -> None:
    found = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in found} == {rule.name for rule in rules()}
    assert {(rule["health"], rule.get("lastError", "")) for rule in found} == {("ok", "")}


def test_the_traffic_raises_the_alerts_that_it_should(prometheus: Prometheus) -> None:
    raised = {series["metric"]["alertname"] for series in prometheus.query("ALERTS")}
    assert raised == EXPECTED
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
