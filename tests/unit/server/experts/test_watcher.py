"""The catalogue follows the library by what has changed, and shows what reading everything would show."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from adapters_registry.keys import new_key
from adapters_registry.library import Library
from adapters_registry.records import KeyRecord, LibraryChanges
from adapters_registry.states import SERVING, AdapterState
from routers.artefacts import ArtefactStore
from routers.embedders.batching import BatchingEmbedder
from routers.embedders.hashing import HashingEncoder
from server.access.auth import Authenticator
from server.errors import AuthenticationFailed
from server.experts import watcher as watcher_module
from server.experts.watcher import LibraryWatcher
from server.policies.definitions import PolicyStore
from server.policies.embedders import Embedders
from server.policies.manager import PolicyManager
from server.policies.scores import ScoreStore
from server.policies.vectors import VectorStore
from server.telemetry.metrics import Metrics
from tests.support.records import record


@pytest.fixture
async def library(tmp_path: Path) -> AsyncIterator[Library]:
    opened = await Library.open(tmp_path)
    yield opened
    await opened.close()


@pytest.fixture
async def watcher(tmp_path: Path, library: Library) -> AsyncIterator[LibraryWatcher]:
    embedder, metrics = BatchingEmbedder(HashingEncoder()), Metrics(max_experts=3, prices={})
    policies = PolicyManager(
        [],
        Embedders(embedder, lambda name: HashingEncoder(16), 10),
        ArtefactStore(tmp_path / "policies"),
        PolicyStore(tmp_path / "policies"),
        ScoreStore(tmp_path / "scores"),
        metrics,
        VectorStore(tmp_path / "vectors.sqlite"),
    )
    yield LibraryWatcher(library, policies, ("base",), metrics, lambda _keys: None)
    await policies.close()
    await embedder.close()


async def test_the_catalogue_is_what_reading_everything_shows(library: Library, watcher: LibraryWatcher) -> None:
    rng, store = random.Random(1), library._adapters
    for step in range(30):
        for number in rng.sample(range(5), rng.randint(0, 2)):
            name, content = f"n{number}", 10 * number + rng.randint(1, 3)
            known = await store.find(name, f"{content:08x}")
            if known is not None and known.state in SERVING and rng.random() < 0.4:
                await store.retire(name, known.version)
            else:
                await store.activate(record(name, f"example {step}", content=content))
        await watcher.show_experts()
        everything = await library.list(*SERVING)
        active = [each for each in everything if each.state is AdapterState.ACTIVE]
        assert list(watcher.catalog.experts.values()) == active
        assert watcher.catalog.others == {r.expert_id: r for r in everything if r.state is not AdapterState.ACTIVE}


async def test_only_what_has_changed_is_read(
    library: Library, watcher: LibraryWatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[LibraryChanges] = []
    changes = library.changes

    async def spied(since: int, *states: AdapterState) -> LibraryChanges:
        read.append(await changes(since, *states))
        return read[-1]

    monkeypatch.setattr(library, "changes", spied)
    for number in range(4):
        await library._adapters.activate(record(f"n{number}", "x", content=number + 1))
        await watcher.show_experts()
        await watcher.show_experts()  # nothing is new
    assert [len(each.records) for each in read] == [1, 1, 1, 1]
    assert [each.is_whole for each in read] == [True, False, False, False]
    assert len(watcher.records) == 4


async def test_only_keys_that_were_changed_are_asked_for_anew(
    library: Library, watcher: LibraryWatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    find = library.keys.find

    async def spied(key_id: str) -> KeyRecord | None:
        asked.append(key_id)
        return await find(key_id)

    monkeypatch.setattr(library.keys, "find", spied)
    authenticator = Authenticator(library.keys)
    watcher._on_keys = authenticator.forget
    (one, first), (two, second), (late, third) = (new_key(name) for name in ("one", "two", "late"))
    for key in (one, two):
        await library.keys.add(key)

    async def knows(secret: str) -> bool:
        try:
            await authenticator.authorise({"x-api-key": secret}, "infer")
        except AuthenticationFailed:
            return False
        return True

    async def changed() -> list[str]:
        await watcher.show_experts()
        asked.clear()
        known = [await knows(secret) for secret in (first, second, third)]
        assert known == [True, (await find(two.key_id)).is_usable(), await find(late.key_id) is not None]  # type: ignore[union-attr]
        return sorted(asked)

    assert await changed() == sorted([one.key_id, two.key_id, late.key_id])
    await library._adapters.activate(record("sql", "x", content=1))
    assert await changed() == []
    await library.keys.revoke(two.key_id)
    assert await changed() == sorted([two.key_id, late.key_id])
    await library.keys.add(late)
    assert await changed() == sorted([two.key_id, late.key_id])


async def test_policies_rest_while_the_library_goes_on_changing(
    library: Library, watcher: LibraryWatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher_module, "QUIET_S", 0.02)
    monkeypatch.setattr(watcher_module, "MAX_REST_S", 100.0)
    await asyncio.wait_for(watcher._rest(100.0), 10)  # nothing changes, so there is nothing to wait for

    async def change() -> None:
        while True:
            watcher._revision += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(watcher_module, "MAX_REST_S", 0.2)
    changing = asyncio.create_task(change())
    started = time.monotonic()
    await watcher._rest(100.0)
    assert time.monotonic() - started >= 0.2
    changing.cancel()
