"""The double of an engine says who answered, and plays at slots."""

from __future__ import annotations

import aiohttp
import pytest

from server.engine.fake import FakeEngine, Slots
from tests.support.servers import http_server

ONE, TWO = "sql@11111111", "math@22222222"


@pytest.mark.parametrize("stream", [True, False])
async def test_answers_say_twice_what_was_asked_for(stream: bool) -> None:
    async with http_server(FakeEngine(num_tokens=2)) as url, aiohttp.ClientSession() as session:
        body = {"model": ONE, "messages": [{"role": "user", "content": "x"}], "stream": stream}
        async with session.post(url + "/v1/chat/completions", json=body) as response:
            text = await response.text()
    assert text.count(f'"model":"{ONE}"') == text.count(f'"system_fingerprint":"fake:{ONE}"') == (2 if stream else 1)


def test_slots_go_to_the_most_recently_used() -> None:
    slots = Slots(2)
    for model in (ONE, TWO, ONE, "base", f"mix({ONE}*0.5,code@33333333*0.5)"):
        slots.use(model)
    assert slots.experts == ["code@33333333", ONE]
    assert (slots.hits, slots.loads, slots.evictions) == (2, 3, 1)


async def test_an_expert_that_is_unloaded_frees_its_slot() -> None:
    engine = FakeEngine()
    engine.slots.use(ONE)
    async with http_server(engine) as url, aiohttp.ClientSession() as session:
        async with session.post(url + "/v1/unload_lora_adapter", json={"lora_name": ONE}) as response:
            assert response.status == 200
        async with session.get(url + "/metrics") as response:
            text = await response.text()
    assert "moergate_expert_resident" not in text
    assert 'moergate_expert_loads_total{source="disk"} 1.0' in text
