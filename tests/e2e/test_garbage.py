"""Requests leave nothing behind that only the garbage collector can free: that costs time, and old things wait long."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.servers import running_gateway

NUM_REQUESTS = 20
OURS = {"server", "routers", "adapters_registry"}


@pytest.mark.parametrize(
    ("model", "stream", "status"), [("base", False, 200), ("base", True, 200), ("auto", False, 200), ("no", False, 404)]
)
async def test_a_request_is_freed_when_it_ends(tmp_path: Path, model: str, stream: bool, status: int) -> None:
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": stream}

    async with running_gateway(tmp_path / "home") as gateway, httpx.AsyncClient(base_url=gateway.url) as client:

        async def ask() -> None:
            for _ in range(NUM_REQUESTS):
                answer = await client.post("/v1/chat/completions", json=body)
                assert answer.status_code == status

        await ask()
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            await ask()
            gc.collect()
            kinds = (type(each) for each in gc.garbage)
            found = Counter(kind.__qualname__ for kind in kinds if kind.__module__.partition(".")[0] in OURS)
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert {name: num for name, num in found.items() if num >= NUM_REQUESTS} == {}  # a refit meanwhile may leave some
