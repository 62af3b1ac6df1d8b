"""A gateway at work under the eyes of a real Prometheus, for tests that ask what panels and alerts ask.

The gateway has keys, two policies, experts, prices, streams, abstentions, refusals for limits and for want of room, and
requests that fail. The engine is a double; its own metrics are a recorded scrape of a real one.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from adapters_registry.key_limits import KeyLimits
from adapters_registry.keys import new_key
from server.engine.fake import FakeEngine
from server.telemetry.drift import MIN_DECISIONS
from tests.e2e.conftest import EXAMPLES, register_examples
from tests.support.adapters import make_adapter, manifest
from tests.support.asking import answers
from tests.support.observed import ENGINE_METRICS, variables
from tests.support.prometheus import GrowingMetrics, Prometheus, config_for, running_prometheus
from tests.support.servers import Running, http_server, running_gateway
from tests.support.waiting import eventually

NUM_SCRAPES = 8
NUM_ROUNDS = 3
LONGEST_S = 180
PRICES = {"base": {"input": 1e6, "output": 1e6}, "expert": {"input": 1e6, "output": 1e6}}  # one a token
KEYS = {
    "team-a": KeyLimits(requests_per_minute=100_000),
    "team-b": KeyLimits(requests_per_minute=3, max_concurrency=1),
    "team-c": KeyLimits(budget_per_day=10.0, budget_per_month=1000.0),
}
SHOWN = {"$__rate_interval": "10s", "$__range": "1m", **{f"${name}": ".+" for name in variables()}}
"""What Grafana puts in the place of variables; for all it has ``.*``, which would match labels that are absent too."""


def shown(expr: str) -> str:
    """A panel's query as Grafana sends it."""
    for name, value in sorted(SHOWN.items(), reverse=True):
        expr = expr.replace(name, value)
    assert "$" not in expr
    return expr


async def watched_gateway(program: str, folder: Path) -> AsyncGenerator[Prometheus]:
    """Start everything and send requests until Prometheus has seen enough; its queries then refer to that moment."""
    engine = FakeEngine(ttft_s=0.01, tokens_per_s=1000)
    policies = {"auto": {"router": "knn"}, "centroid": {"router": "centroid"}}
    crowded: dict[str, Any] = {"max_concurrency": 4, "max_queue": 4, "prices": PRICES, "policies": policies}
    async with (
        http_server(GrowingMetrics(ENGINE_METRICS.read_text("utf-8"))) as exporter,
        running_gateway(folder / "home", engine, count_stream_tokens=True, **crowded) as gateway,
    ):
        await register_examples(gateway, folder)
        await _register_versions(gateway, folder)
        async with _clients(gateway) as clients:
            targets = {"moergate": urlsplit(gateway.url).netloc, "vllm": urlsplit(exporter).netloc}
            key = clients.pop("prometheus").headers["authorization"].removeprefix("Bearer ")
            config = config_for(folder, targets, key)
            with running_prometheus(program, config) as server:
                num_rounds = 0
                for _ in range(MIN_DECISIONS // 4 + 1):  # drift is told from so many on
                    await asyncio.gather(*(_ask(clients["team-a"], "auto", EXAMPLES["sql"][0]) for _ in range(4)))

                async def has_seen_enough() -> bool:
                    nonlocal num_rounds
                    await _round(engine, clients)
                    num_rounds += 1
                    return num_rounds >= NUM_ROUNDS and await _has_seen_enough(server)

                await eventually(has_seen_enough, LONGEST_S, "Prometheus does not read the gateway and the engine")
                server.at = time.time()
                yield server


async def _register_versions(gateway: Running, folder: Path) -> None:
    """A canary, and a version that its probes reject."""
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as http:

        async def register(name: str, seed: int, **publish: Any) -> httpx.Response:
            body = manifest(name, make_adapter(folder / f"{name}{seed}", seed=seed), *EXAMPLES["sql"])
            return await http.post("/admin/adapters", json=body | {"publish": publish})

        assert (await register("sql", 50, to="canary", share=0.5)).status_code == 201
        idle = (await register("idle", 51, to="ready")).json()["id"]
        assert (await http.delete(f"/admin/adapters/{idle}")).status_code == 200
        gateway.engine.without_effect.add(idle)
        assert (await register("idle", 51)).status_code == 400


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
    await eventually(lambda: answers(clients["team-a"], "/v1/models", 200))
    try:
        yield clients
    finally:
        for client in clients.values():
            await client.aclose()


async def _has_seen_enough(server: Prometheus) -> bool:
    seen = await asyncio.to_thread(server.values, f"sum_over_time(up[5m]) >= {NUM_SCRAPES}")
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
    for model in ("dates", "auto", "base", "sql", "sql"):
        await asyncio.gather(*(_ask(a, model, f"{prompts[0]} {random.random()}", stream=True) for _ in range(3)))
    engine.break_after = None
    canary = [a.post("/v1/chat/completions", json=_body("sql", f"conversation {number}")) for number in range(3)]
    for rating, response in zip(("up", "down", "up"), await asyncio.gather(*canary), strict=True):
        opinion = {"request_id": response.headers["x-request-id"], "rating": rating}
        await a.post("/v1/feedback", json=opinion)
    nobody = _body("auto", "for whom is this") | {"exclude_experts": list(EXAMPLES)}
    await a.post("/v1/chat/completions", json=nobody)
    routed = await a.post("/v1/chat/completions", json=_body("auto", prompts[0]))
    await a.post("/v1/feedback", json={"request_id": routed.headers["x-request-id"], "rating": "up"})


def _body(model: str, text: str, *, stream: bool = False) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 6, "stream": stream}


async def _ask(client: httpx.AsyncClient, model: str, text: str, *, stream: bool = False) -> int:
    body = _body(model, text, stream=stream)
    return (await client.post("/v1/chat/completions", json=body)).status_code
