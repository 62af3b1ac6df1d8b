"""Requests at once of a key, over two gateways on one database: as the engine sees them, and when one is killed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters_registry.key_limits import KeyLimits
from adapters_registry.keys import new_key
from adapters_registry.stores import sql_running
from server.engine.fake import FakeEngine
from tests.support.asking import answers
from tests.support.processes import free_port, serving
from tests.support.servers import Running, http_server, running_gateway
from tests.support.waiting import eventually

CHAT = {"model": "base", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
ENDLESS = CHAT | {"max_tokens": 100_000, "stream": True}


class Crowd(FakeEngine):
    """Knows how many requests it had at once at most."""

    most = 0

    async def _generate(self, *arguments: Any) -> None:
        self.most = max(self.most, self.running + 1)
        await super()._generate(*arguments)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> dict[str, str]:
    """The setting that says which database; none is SQLite in the home folder."""
    return {"database_url": request.getfixturevalue("postgres_url")} if request.param == "postgresql" else {}


async def key_of(gateway: Running, limits: KeyLimits, *urls: str) -> dict[str, str]:
    """The headers of a new key, once the gateways at these addresses know it."""
    record, secret = new_key("app", limits=limits)
    await gateway.gateway.library.keys.add(record)
    headers = {"authorization": f"Bearer {secret}"}
    async with httpx.AsyncClient(headers=headers) as client:
        for url in urls:
            await eventually(lambda url=url: answers(client, f"{url}/v1/models", 200))
    return headers


@contextlib.asynccontextmanager
async def stream(client: httpx.AsyncClient) -> AsyncIterator[None]:
    """An answer that has begun and does not end by itself."""
    async with client.stream("POST", "/v1/chat/completions", json=ENDLESS) as answer:
        assert answer.status_code == 200
        parts = answer.aiter_bytes()
        await anext(parts)
        yield


async def test_the_engine_never_sees_more_than_a_key_may_have(tmp_path: Path, database: dict[str, str]) -> None:
    engine = Crowd(ttft_s=0.02)
    async with contextlib.AsyncExitStack() as stack:
        url = await stack.enter_async_context(http_server(engine))
        options: dict[str, Any] = {"engine_url": [url], **database}
        pair = [await stack.enter_async_context(running_gateway(tmp_path / "home", **options)) for _ in range(2)]
        headers = await key_of(pair[0], KeyLimits(max_concurrency=3), *(each.url for each in pair))
        clients = [
            await stack.enter_async_context(httpx.AsyncClient(base_url=each.url, headers=headers, timeout=30))
            for each in pair
        ]
        refused: list[httpx.Response] = []

        async def ask_until_answered(client: httpx.AsyncClient) -> None:
            async def is_answered() -> bool:
                answer = await client.post("/v1/chat/completions", json=CHAT)
                if answer.status_code != 200:
                    refused.append(answer)
                return answer.status_code == 200

            await eventually(is_answered, within=60)

        await asyncio.gather(*(ask_until_answered(client) for client in clients * 15))
        assert engine.most == 3
        assert {answer.status_code for answer in refused} == {429}
        assert {answer.headers["retry-after"] for answer in refused} == {"1"}
        assert {answer.json()["error"]["code"] for answer in refused} == {"rate_limit_exceeded"}
        assert "3 requests at once" in refused[0].json()["error"]["message"]


async def test_a_stream_of_a_key_without_other_limits_is_left_alone(tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "home") as running:
        headers = await key_of(running, KeyLimits(max_concurrency=1), running.url)
        async with httpx.AsyncClient(base_url=running.url, headers=headers) as client:
            answer = await client.post("/v1/chat/completions", json=CHAT | {"stream": True})
        assert "data: [DONE]" in answer.text
        assert not [name for name in answer.headers if name.startswith("x-ratelimit")]
        assert b"stream_options" not in running.engine.seen[-1].body


async def test_places_of_a_gateway_that_is_killed_come_back_by_themselves(
    tmp_path: Path, database: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(tokens_per_s=50)
    async with contextlib.AsyncExitStack() as stack:
        url = await stack.enter_async_context(http_server(engine))
        survivor = await stack.enter_async_context(running_gateway(tmp_path / "home", engine_url=[url], **database))
        arguments = ["--engine-url", url, "--embedder", "hashing", "--base-model", "tiny-base"]
        if database:
            arguments += ["--database-url", database["database_url"]]
        killed = stack.enter_context(serving(tmp_path / "home", free_port(), *arguments))
        await asyncio.to_thread(killed.wait_ready, 60)
        headers = await key_of(survivor, KeyLimits(max_concurrency=3), survivor.url, killed.url)
        one, other = [
            await stack.enter_async_context(httpx.AsyncClient(base_url=each, headers=headers, timeout=30))
            for each in (killed.url, survivor.url)
        ]

        async def status(client: httpx.AsyncClient) -> int:
            return (await client.post("/v1/chat/completions", json=CHAT)).status_code

        doomed = contextlib.AsyncExitStack()
        for _ in range(2):
            await doomed.enter_async_context(stream(one))
        async with stream(other):
            assert (await status(one), await status(other)) == (429, 429)
            assert engine.running == 3
            killed.process.kill()
            await asyncio.to_thread(killed.process.wait)
            assert await status(other) == 429
            monkeypatch.setattr(sql_running, "KEPT_S", 1.0)  # from now on nobody waits for 15 s

            async def is_free() -> bool:
                return await status(other) == 200

            await eventually(is_free)
            async with stream(other), stream(other):
                assert await status(other) == 429  # as many as there were, and no more
        await doomed.aclose()
