"""Limits of keys: exact under concurrency and over several gateways, told in OpenAI's headers and codes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from adapters_registry.key_limits import KeyLimits, Used
from adapters_registry.keys import new_key
from server.engine.fake import FakeEngine
from tests.support.asking import answers
from tests.support.servers import Running, running_gateway
from tests.support.waiting import eventually

NOON = datetime(2026, 5, 1, 12, 0, 20, tzinfo=UTC)
CHAT = {"model": "base", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


@pytest.fixture(autouse=True)
def noon(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime], None]:
    """The time by which limits count stands still; calling this sets it."""

    def set_to(moment: datetime) -> None:
        monkeypatch.setattr("server.access.key_limits.utc_now", lambda: moment)

    set_to(NOON)
    return set_to


@contextlib.asynccontextmanager
async def keyed(
    running: Running, limits: KeyLimits, **options: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Callable[[], Any]]]:
    """A client with a new key, and a function that tells what the key has used."""
    key, secret = new_key("app", limits=limits, **options)
    await running.gateway.library.keys.add(key)
    headers = {"authorization": f"Bearer {secret}"}

    async def used() -> dict[str, Used]:
        await running.gateway.limiter.close()  # what is being written
        found = await running.gateway.library.usage.used(key.key_id, limits, NOON)
        return {each.window.period: each for each in found}

    async with httpx.AsyncClient(base_url=running.url, headers=headers, timeout=30) as client:
        await eventually(lambda: answers(client, "/v1/models", 200))
        yield client, used


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_requests_a_minute_hold_over_two_gateways(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest, noon: Callable[[datetime], None]
) -> None:
    database = {"database_url": request.getfixturevalue("postgres_url")} if kind == "postgresql" else {}
    async with (
        running_gateway(tmp_path / "home", **database) as one,
        running_gateway(tmp_path / "home", **database) as two,
        keyed(one, KeyLimits(requests_per_minute=5)) as (client, used),
        httpx.AsyncClient(base_url=two.url, headers=client.headers, timeout=30) as other,
    ):
        calls = [each.post("/v1/chat/completions", json=CHAT) for each in (client, other) * 15]
        answers = await asyncio.gather(*calls)
        good = [answer for answer in answers if answer.status_code == 200]
        assert sorted(int(answer.headers["x-ratelimit-remaining-requests"]) for answer in good) == [0, 1, 2, 3, 4]
        assert {answer.headers["x-ratelimit-limit-requests"] for answer in good} == {"5"}
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(refused) == 25
        assert {answer.json()["error"]["code"] for answer in refused} == {"rate_limit_exceeded"}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert {answer.headers["x-ratelimit-remaining-requests"] for answer in refused} == {"0"}
        assert (await used())["minute"].requests == 5
        noon(NOON.replace(minute=1))
        assert (await other.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_tokens_are_counted_by_what_the_engine_says(tmp_path: Path) -> None:
    limits = KeyLimits(tokens_per_minute=400)
    async with running_gateway(tmp_path / "home") as running, keyed(running, limits) as (client, used):
        whole = (await client.post("/v1/chat/completions", json=CHAT)).json()
        taken = whole["usage"]["total_tokens"]
        assert (await used())["minute"].tokens == taken
        stream = (await client.post("/v1/chat/completions", json=CHAT | {"stream": True})).text
        assert "usage" not in stream  # the caller did not ask for it, we did
        assert (await used())["minute"].tokens == 2 * taken
        tokenized = await client.post("/tokenize", json={"model": "base", "prompt": "x " * 300})
        assert tokenized.status_code == 200
        assert (await client.post("/v1/chat/completions", json=CHAT | {"model": "absent"})).status_code == 404
        assert (await used())["minute"].tokens == 2 * taken
        large = await client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 500})
        assert large.status_code == 429
        assert "Set a smaller max_tokens" in large.json()["error"]["message"]
        assert "retry-after" not in large.headers
        several = [client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 100}) for _ in range(8)]
        statuses = [answer.status_code for answer in await asyncio.gather(*several)]
        assert 2 <= statuses.count(200) <= 8
        final = (await used())["minute"]
        assert final.tokens <= 400
        assert final.requests == 4 + statuses.count(200)


async def test_who_hangs_up_pays_for_prompt_and_what_was_generated(tmp_path: Path) -> None:
    slow = FakeEngine(tokens_per_s=50)
    async with (
        running_gateway(tmp_path / "home", slow) as running,
        keyed(running, KeyLimits(tokens_per_minute=5000)) as (client, used),
    ):
        long = {"role": "user", "content": "word " * 400}
        body = CHAT | {"messages": [long], "max_tokens": 500, "stream": True}
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if "word5" in line:
                    break

        async def is_settled() -> bool:  # 2,000 bytes of text, and some tokens until the engine was told
            return 500 + 5 < (await used())["minute"].tokens < 500 + 400

        await eventually(is_settled)
        image = "data:image/png;base64," + "A" * 8000
        pictured = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": image}}]}
        assert (await client.post("/v1/chat/completions", json=CHAT | {"messages": [pictured]})).status_code == 200


async def test_a_budget_ends_with_openais_code(tmp_path: Path, noon: Callable[[datetime], None]) -> None:
    prices = {"base": {"input": 1e6, "output": 1e6}}  # one a token
    limits = KeyLimits(budget_per_day=1.0, budget_per_month=1000.0)
    async with running_gateway(tmp_path / "home", prices=prices) as running, keyed(running, limits) as (client, used):
        secret = client.headers["authorization"].removeprefix("Bearer ")
        async with openai.AsyncOpenAI(base_url=running.url + "/v1", api_key=secret, max_retries=0) as official:
            messages: Any = CHAT["messages"]
            answer = await official.chat.completions.create(model="base", messages=messages, max_tokens=4)
            assert answer.usage
            assert (await used())["month"].cost == pytest.approx(answer.usage.total_tokens)
            with pytest.raises(openai.RateLimitError) as refused:
                await official.chat.completions.create(model="base", messages=messages, max_tokens=4)
            assert refused.value.code == "insufficient_quota"
            noon(NOON.replace(day=2))
            await official.chat.completions.create(model="base", messages=messages, max_tokens=4)


async def test_requests_at_once(tmp_path: Path) -> None:
    slow = FakeEngine(tokens_per_s=20)
    async with (
        running_gateway(tmp_path / "home", slow) as running,
        keyed(running, KeyLimits(max_concurrency=2)) as (client, used),
    ):
        calls = [client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 10}) for _ in range(5)]
        answers = await asyncio.gather(*calls)
        assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429]
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert "2 requests at once" in refused.json()["error"]["message"]
        async with client.stream("POST", "/v1/chat/completions", json=CHAT | {"max_tokens": 50, "stream": True}):
            pass  # the caller hangs up, and the place is free again
        await eventually(lambda: not running.engine.running and not running.gateway.admission.num_active)
        await used()  # waits for what is being written
        again = [client.post("/v1/chat/completions", json=CHAT) for _ in range(2)]
        assert [answer.status_code for answer in await asyncio.gather(*again)] == [200, 200]
        metrics = running.gateway.metrics.registry
        assert metrics.get_sample_value("moergate_requests_limited_total", {"limit": "max_concurrency"}) == 3
        by_key = {"key": "app", "limit": "max_concurrency"}
        assert metrics.get_sample_value("moergate_key_limited_total", by_key) == 3
        assert metrics.get_sample_value("moergate_key_requests_total", {"key": "app", "status": "200"}) == 4


async def test_a_policy_that_a_key_may_not_ask_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    async with (
        running_gateway(
            tmp_path / "home", policies={"auto": {"router": "knn"}, "team-a": {"router": "knn"}}
        ) as running,
        keyed(running, KeyLimits(), policies=["team-*"]) as (client, _),
    ):
        listed = {entry["id"] for entry in (await client.get("/v1/models")).json()["data"]}
        assert "team-a" in listed
        assert "auto" not in listed
        for suffix in ("", ":0.3"):
            hidden, unknown = [
                await client.post("/v1/chat/completions", json=CHAT | {"model": name + suffix})
                for name in ("auto", "oaut")
            ]
            assert hidden.status_code == unknown.status_code == 404
            assert hidden.text.replace("auto", "?") == unknown.text.replace("oaut", "?")
        assert (await client.get("/v1/models/auto")).status_code == 404
        assert (await client.post("/v1/route", json=CHAT | {"model": "team-a"})).status_code == 200
        without = {key: value for key, value in CHAT.items() if key != "model"}
        assert (await client.post("/v1/chat/completions", json=without)).status_code == 404
