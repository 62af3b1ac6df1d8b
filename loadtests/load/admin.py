"""The admin API as load tests use it: register, remove, list, and how long until a policy knows a new expert."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import orjson
from bench.client import Client, ConnectionLost, Exchange

from load.adapters import PREFIX, Template, examples_of, name_of, prompt_of, upload

ROUTABLE_POLL_S = 0.1
SETTLED_WITHIN_S = 60.0
WAITING = ("registered", "validating")
"""States of a version that the gateway has not offered yet."""


class Refused(Exception):
    """The gateway answered an order with an error: it was not carried out."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(f"status {exchange.status}: {exchange.body[:300].decode('utf-8', 'replace')}")
        self.status = exchange.status


class Admin:
    """Orders to one gateway. What a lost connection did is unknown: every method may raise ConnectionLost or OSError.

    Args:
        client: Connections to the gateway.
        template: What adapters look like.
    """

    def __init__(self, client: Client, template: Template) -> None:
        self._client = client
        self._template = template

    async def register(self, index: int, seed: int, *, held: bool = False) -> str:
        """Register the expert of this number with the content of this seed; returns the version.

        One that is `held` waits to be promoted.
        """
        name = name_of(index)
        body, kind = upload(name, examples_of(index), self._template.files(seed), held=held)
        answer = _json(await self._client.post("/admin/adapters", body, kind), 201)
        await self._settled(f"{name}@{answer['version']}", answer)
        return str(answer["version"])

    async def remove(self, ref: str) -> None:
        """Remove an expert."""
        _json(await self._client.request("DELETE", f"/admin/adapters/{quote(ref, safe='@')}"), 200)

    async def promote(self, ref: str) -> None:
        """Make a version the one that its name stands for."""
        _json(await self._client.post(f"/admin/adapters/{quote(ref, safe='@')}/promote", b"{}"), 200)

    async def rollback(self, name: str) -> str:
        """Make the version before this one the one that a name stands for again; returns it."""
        return str(_json(await self._client.post(f"/admin/adapters/{name}/rollback", b"{}"), 200)["version"])

    async def version(self, name: str) -> str | None:
        """The version that a name stands for, once none of its versions waits to be probed; None if there is none."""
        until = time.perf_counter() + SETTLED_WITHIN_S
        while True:
            exchange = await self._client.request("GET", f"/admin/adapters/{name}/versions")
            if exchange.status == 404:
                return None
            records = _json(exchange, 200)["data"]
            if not any(record["state"] in WAITING for record in records) or time.perf_counter() > until:
                break
            await asyncio.sleep(ROUTABLE_POLL_S)
        return next((str(record["version"]) for record in records if record["state"] == "active"), None)

    async def _settled(self, ref: str, record: dict[str, Any]) -> None:
        """Wait until the engine has probed a version, which takes as long as none is ready."""
        until = time.perf_counter() + SETTLED_WITHIN_S
        while record["state"] in WAITING and time.perf_counter() < until:
            await asyncio.sleep(ROUTABLE_POLL_S)
            exchange = await self._client.request("GET", f"/admin/adapters/{quote(ref, safe='@')}")
            record = _json(exchange, 200)

    async def records(self) -> list[dict[str, Any]]:
        """All experts of load tests that are in the library, as the admin API shows them."""
        listing: list[dict[str, Any]] = _json(await self._client.request("GET", "/admin/adapters"), 200)["data"]
        return [entry for entry in listing if entry["name"].startswith(PREFIX)]

    async def library(self) -> dict[str, str]:
        """Name to version of `records`."""
        return {entry["name"]: entry["version"] for entry in await self.records()}

    async def routed(self, policy: str, index: int) -> str:
        """The recipe that a policy decides on for a prompt of this expert."""
        fields = {"model": policy, "messages": [{"role": "user", "content": prompt_of(index, 1, 24)}]}
        return str(_json(await self._client.post("/v1/route", orjson.dumps(fields)), 200)["recipe"])

    async def wait_routable(self, policy: str, index: int, version: str, patience_s: float) -> float | None:
        """Seconds until a policy chooses this version for its prompts; None if it did not in time."""
        started = time.perf_counter()
        while time.perf_counter() - started < patience_s:
            if await self.routed(policy, index) == f"{name_of(index)}@{version}":
                return time.perf_counter() - started
            await asyncio.sleep(ROUTABLE_POLL_S)
        return None


async def register_all(
    admin: Admin, indexes: Sequence[int], parallel: int, on_done: Callable[[], None] = lambda: None
) -> dict[str, str]:
    """Register experts, so many at a time; returns name to version.

    Raises:
        Refused, ConnectionLost, OSError: One could not be registered.
    """
    left = iter(indexes)
    versions: dict[str, str] = {}

    async def worker() -> None:
        for index in left:
            versions[name_of(index)] = await admin.register(index, index)
            on_done()

    async with asyncio.TaskGroup() as group:
        for _ in range(parallel):
            group.create_task(worker())
    return versions


UNKNOWN = (ConnectionLost, OSError)
"""Raised where it is not known what has become of an order."""


def _json(exchange: Exchange, *expected: int) -> dict[str, Any]:
    if exchange.status not in expected:
        raise Refused(exchange)
    parsed: dict[str, Any] = orjson.loads(exchange.body)
    return parsed
