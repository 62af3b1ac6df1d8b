"""Draining: a version leaves once nothing runs on it, engines forget it, and its files go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest

from adapters_registry.library import Library
from adapters_registry.records import AdapterRecord, Change, Transition, parse_manifest, utc_now
from adapters_registry.states import AdapterState
from server.engine.base import EngineRequest
from server.engine.body import parse_body
from server.engine.pool import EnginePool
from server.engine.recipes import Single
from server.experts.draining import Drainer
from server.planning.conversations import Conversation, ConversationMemory
from tests.support.adapters import make_adapter, manifest
from tests.support.parts import MemoryEngine, pool_over
from tests.support.waiting import eventually

LONG_AGO = timedelta(seconds=60)
"""Age of a version's last change: so old that no other gateway can still start a request on it."""


@dataclass
class Scene:
    """A library, and a drainer whose engines tell what they forgot."""

    library: Library
    pool: EnginePool
    memory: ConversationMemory
    drainer: Drainer
    folder: Path
    forgotten: list[str] = field(default_factory=list)

    async def active(self, seed: int, name: str = "sql") -> AdapterRecord:
        """Register a version and activate it; the one before drains."""
        folder = make_adapter(self.folder / f"{name}{seed}", seed=seed)
        return await self.library.register_folder(parse_manifest(manifest(name, folder, "an example")), folder)

    async def follow(self) -> None:
        """Follow the library as it is, with the changes dated back."""
        serving = await self.library.list(AdapterState.ACTIVE, AdapterState.DRAINING)
        self.drainer.follow([replace(each, updated_at=utc_now() - LONG_AGO) for each in serving])

    async def move(self, version: AdapterRecord, state: AdapterState) -> None:
        """Take a version to another state."""
        current = await self.library.find(version.expert_id)
        await self.library.move(current, Transition(state), Change("test", "moved"))

    async def state_of(self, version: AdapterRecord) -> AdapterState:
        return (await self.library.find(version.expert_id)).state


@asynccontextmanager
async def scene(home: Path, *, kept_versions: int = 1, conversation_idle_s: float = 1000.0) -> AsyncIterator[Scene]:
    library = await Library.open(home / "home")
    pool, memory, forgotten = pool_over(MemoryEngine()), ConversationMemory(), list[str]()

    async def unload(expert_id: str) -> None:
        forgotten.append(expert_id)

    drainer = Drainer(
        library, pool, memory, [unload], kept_versions=kept_versions, conversation_idle_s=conversation_idle_s
    )
    try:
        yield Scene(library, pool, memory, drainer, home, forgotten)
    finally:
        await drainer.close()
        await library.close()


async def test_a_replaced_version_retires_and_the_engines_forget_it(tmp_path: Path) -> None:
    async with scene(tmp_path) as each:
        old, new = await each.active(1), await each.active(2)
        assert await each.state_of(old) is AdapterState.DRAINING
        await each.follow()
        await each.follow()  # it is being drained already
        await eventually(lambda: each.forgotten)
        assert each.forgotten == [old.expert_id]
        assert (await each.state_of(old), await each.state_of(new)) == (AdapterState.RETIRED, AdapterState.ACTIVE)


async def test_a_version_drains_while_requests_or_conversations_are_on_it(tmp_path: Path) -> None:
    async with scene(tmp_path, conversation_idle_s=0.5) as each:
        old = await each.active(1)
        await each.active(2)
        request = EngineRequest("/v1/completions", parse_body(b"{}"), Single(old.expert_id), "r1")
        running = await each.pool.forward(request)
        await each.follow()
        await asyncio.sleep(0.5)
        assert (await each.state_of(old), each.forgotten) == (AdapterState.DRAINING, [])
        each.memory.put(Conversation(b"c", goes_on=True), "version sql", old.expert_id)
        running.close()
        assert each.memory.idle_s(old.expert_id) < 0.5
        await eventually(lambda: each.forgotten)
        assert each.memory.idle_s(old.expert_id) >= 0.5
        assert await each.state_of(old) is AdapterState.RETIRED


async def test_a_version_that_was_withdrawn_waits_for_no_conversation(tmp_path: Path) -> None:
    async with scene(tmp_path) as each:
        only = await each.active(1)
        each.memory.put(Conversation(b"c", goes_on=True), "version sql", only.expert_id)
        await each.move(only, AdapterState.DRAINING)
        await each.follow()
        await eventually(lambda: each.forgotten)
        assert await each.state_of(only) is AdapterState.RETIRED


async def test_what_another_gateway_drained_is_forgotten_here_too(tmp_path: Path) -> None:
    async with scene(tmp_path) as each:
        old, new = await each.active(1), await each.active(2)
        each.drainer.follow([replace(old, state=AdapterState.ACTIVE), new])
        each.drainer.follow([new])
        await eventually(lambda: each.forgotten)
        assert each.forgotten == [old.expert_id]


@pytest.mark.parametrize(("kept_versions", "num_left"), [(0, 0), (1, 1), (5, 2)])
async def test_the_newest_retired_versions_keep_their_files(tmp_path: Path, kept_versions: int, num_left: int) -> None:
    async with scene(tmp_path, kept_versions=kept_versions) as each:
        versions = [await each.active(seed) for seed in (1, 2, 3)]
        for old in versions[:2]:
            await each.move(old, AdapterState.RETIRED)
        await each.drainer.collect()
        left = [old for old in versions if not (await each.library.find(old.expert_id)).is_purged]
        assert left == versions[2 - num_left :]


async def test_a_name_without_an_active_version_keeps_no_files(tmp_path: Path) -> None:
    async with scene(tmp_path, kept_versions=5) as each:
        only = await each.active(1)
        await each.move(only, AdapterState.DRAINING)
        await each.move(only, AdapterState.RETIRED)
        await each.drainer.collect("sql")
        assert (await each.library.find(only.expert_id)).is_purged
