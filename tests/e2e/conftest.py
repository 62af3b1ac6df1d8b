"""A gateway with a small library, in front of a double of the engine."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.support.adapters import make_adapter, manifest
from tests.support.browser import BROWSER, Browser, running_browser
from tests.support.servers import Running, running_gateway
from tests.support.waiting import eventually

EXAMPLES = {
    "sql": ("how many orders were placed in May", "list all customers in Berlin", "total revenue per product"),
    "dates": ("convert 3 March 2021 to ISO", "write the fifth of June 1999 as a date", "ISO form of May 2nd 2020"),
}


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    """Two experts, sql and dates, and the policy auto."""
    async with running_gateway(tmp_path / "home") as gateway:
        await register_examples(gateway, tmp_path)
        yield gateway


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    """A real Chromium with an empty profile."""
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome on this machine")
    async with running_browser(tmp_path) as browser:
        yield browser


async def register_examples(gateway: Running, folder: Path, **tenants: str) -> dict[str, str]:
    """Register the two experts, for these tenants; their ids by name, once both can be routed to."""
    ids = {}
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        for seed, (name, examples) in enumerate(EXAMPLES.items()):
            adapter = make_adapter(folder / name, seed=seed)
            order = manifest(name, adapter, *examples, tenant=tenants.get(name))
            response = await client.post("/admin/adapters", json=order)
            assert response.status_code == 201, response.text
            ids[name] = response.json()["id"]
        for name, examples in EXAMPLES.items():
            await routed_to(client, examples[0], ids[name])
    return ids


async def routed_to(client: httpx.AsyncClient, text: str, recipe: str) -> None:
    """Wait until a prompt is routed to this recipe."""
    body = {"messages": [{"role": "user", "content": text}]}

    async def is_routed() -> bool:
        return bool((await client.post("/v1/route", json=body)).json().get("recipe") == recipe)

    await eventually(is_routed, message=f"{text!r} is never routed to {recipe}")
