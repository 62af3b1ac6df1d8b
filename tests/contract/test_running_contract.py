"""Requests at once: exact over gateways, given back by those that are killed, whatever database is below."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters_registry.errors import DatabaseBusy
from adapters_registry.key_limits import KeyLimits, Reservation, TooManyAtOnce
from adapters_registry.stores import sql_running
from adapters_registry.stores.database import Database
from adapters_registry.stores.sql_running import BEAT_S, KEPT_S
from adapters_registry.stores.sql_usage import SqlUsageStore
from tests.support.waiting import eventually

NOON = datetime(2026, 2, 28, 12, 0, 30, tzinfo=UTC)
NewGateway = Callable[[], Coroutine[Any, Any, SqlUsageStore]]
KEY = "aaaaaaaa"


@pytest.fixture
async def gateway(url: str, database: Database) -> AsyncIterator[NewGateway]:
    """Makes the store of one more gateway, with connections of its own."""
    async with AsyncExitStack() as stack:

        async def make() -> SqlUsageStore:
            own = Database(url, max_attempts=30)
            stack.push_async_callback(own.close)
            store = SqlUsageStore(own)
            stack.push_async_callback(store.close)
            return store

        yield make


def at_once(number: int, **others: Any) -> KeyLimits:
    return KeyLimits(max_concurrency=number, **others)


async def taken(store: SqlUsageStore, limits: KeyLimits, key: str = KEY) -> list[Reservation]:
    """As many places as there are."""
    found = []
    while True:
        try:
            found.append(await store.reserve(key, limits, 0, NOON))
        except TooManyAtOnce:
            return found


async def rows(database: Database) -> list[tuple[str, int]]:
    """Key and number of each gateway's row."""

    async def work(connection: AsyncConnection) -> list[tuple[str, int]]:
        statement = sa.text("SELECT key_id, requests FROM running WHERE gateway <> '' ORDER BY key_id, requests")
        return [(row.key_id, row.requests) for row in await connection.execute(statement)]

    return await database.read(work)


async def age(database: Database, seconds: float) -> None:
    """As if so much time had gone by since all gateways were last seen."""

    async def work(connection: AsyncConnection) -> None:
        await connection.execute(sa.text("UPDATE running SET seen_at = seen_at - :seconds"), {"seconds": seconds})

    await database.count(work)


async def last_seen(database: Database) -> float:
    """The time of the newest row."""

    async def work(connection: AsyncConnection) -> float:
        return float((await connection.execute(sa.text("SELECT max(seen_at) FROM running"))).scalar_one())

    return await database.read(work)


async def test_of_all_who_come_at_once_exactly_so_many_get_a_place(gateway: NewGateway, database: Database) -> None:
    stores = [await gateway() for _ in range(3)]
    results = await asyncio.gather(
        *(stores[n % 3].reserve(KEY, at_once(10), 0, NOON) for n in range(60)), return_exceptions=True
    )
    assert Counter(type(each) for each in results) == {Reservation: 10, TooManyAtOnce: 50}
    assert sum(number for _, number in await rows(database)) == 10
    assert [await store.under_way(KEY) for store in stores] == [10, 10, 10]
    held = [(stores[n % 3], each) for n, each in enumerate(results) if isinstance(each, Reservation)]
    await asyncio.gather(*(store.settle(each, 0, 0.0) for store, each in held))
    assert await rows(database) == []
    assert len(await taken(stores[0], at_once(10))) == 10


async def test_the_sum_never_exceeds_the_limit_while_requests_come_and_go(gateway: NewGateway) -> None:
    stores = [await gateway() for _ in range(3)]
    choose = random.Random(5)
    running: Counter[str] = Counter()
    seen: set[tuple[str, int]] = set()

    async def caller(store: SqlUsageStore, key: str) -> None:
        for _ in range(12):
            try:
                held = await store.reserve(key, at_once(3), 0, NOON)
            except TooManyAtOnce:
                await asyncio.sleep(0.001)
                continue
            running[key] += 1
            seen.add((key, running[key]))
            await asyncio.sleep(choose.random() / 100)
            running[key] -= 1
            await store.settle(held, 0, 0.0)

    await asyncio.gather(*(caller(store, key) for store in stores for key in (KEY, "bbbbbbbb") for _ in range(5)))
    assert seen == {(key, number) for key in (KEY, "bbbbbbbb") for number in (1, 2, 3)}
    for key in (KEY, "bbbbbbbb"):
        assert len(await taken(stores[1], at_once(3), key)) == 3


async def test_other_limits_count_with_it_and_what_is_refused_counts_nowhere(
    gateway: NewGateway, database: Database
) -> None:
    one, other = await gateway(), await gateway()
    limits = at_once(2, requests_per_minute=9, tokens_per_minute=1000)
    held = [await store.reserve(KEY, limits, 100, NOON) for store in (one, other)]
    for store in (one, other):
        with pytest.raises(TooManyAtOnce):
            await store.reserve(KEY, limits, 100, NOON)
    (used,) = await one.used(KEY, limits, NOON)
    assert (used.requests, used.tokens) == (2, 200)
    await one.settle(held[0], 30, 0.0)
    assert (await other.reserve(KEY, limits, 100, NOON)).used["minute"].tokens == 230
    without = KeyLimits(requests_per_minute=9)
    assert not (await one.reserve("bbbbbbbb", without, 1, NOON)).holds_place
    assert await rows(database) == [(KEY, 2)]  # of the other key, nothing


@pytest.mark.parametrize("direction", [1, -1])
async def test_a_killed_gateway_is_forgotten(
    gateway: NewGateway, database: Database, monkeypatch: pytest.MonkeyPatch, direction: int
) -> None:
    monkeypatch.setattr(sql_running, "BEAT_S", 3600.0)
    killed, survivor, late = await gateway(), await gateway(), await gateway()
    assert len(await taken(killed, at_once(3))) == 3
    await killed.reserve("bbbbbbbb", at_once(1), 0, NOON)
    await age(database, direction * (KEPT_S - BEAT_S))  # beats may be late, and clocks set right
    assert len(await taken(survivor, at_once(4))) == 1
    await age(database, direction * (BEAT_S + 1))
    assert len(await taken(late, at_once(4))) == 3
    assert await rows(database) == [(KEY, 1), (KEY, 3), ("bbbbbbbb", 1)]
    assert [await survivor.under_way(key) for key in (KEY, "bbbbbbbb", "cccccccc")] == [4, 0, 0]


async def test_one_that_was_only_slow_counts_again_and_never_below_zero(
    gateway: NewGateway, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_running, "BEAT_S", 3600.0)
    slow, other = await gateway(), await gateway()
    first, second = await taken(slow, at_once(2))
    await age(database, KEPT_S + 1)
    mine, _ = await taken(other, at_once(2))
    assert await rows(database) == [(KEY, 2)]
    await slow.settle(first, 0, 0.0)
    assert await rows(database) == [(KEY, 1), (KEY, 2)]  # it has told again what it has
    await slow.settle(second, 0, 0.0)
    assert await rows(database) == [(KEY, 2)]
    assert await taken(slow, at_once(2)) == []
    await other.settle(mine, 0, 0.0)
    assert len(await taken(slow, at_once(2))) == 1


async def test_a_gateway_says_that_it_lives_as_long_as_it_has_such_requests(
    gateway: NewGateway, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_running, "BEAT_S", 0.02)
    one, other = await gateway(), await gateway()
    before = asyncio.all_tasks()
    (held,) = await taken(one, at_once(1))
    for _ in range(2):
        fresh = await last_seen(database)
        await age(database, 1000.0)

        async def is_renewed(before: float = fresh) -> bool:
            return await last_seen(database) > before - 500

        await eventually(is_renewed)
        assert await taken(other, at_once(1)) == []
    await one.settle(held, 0, 0.0)

    async def is_quiet() -> bool:
        return asyncio.all_tasks() <= before

    await eventually(is_quiet)
    assert len(await taken(other, at_once(1))) == 1


async def test_what_could_not_be_written_is_written_by_a_later_beat(
    gateway: NewGateway, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_running, "BEAT_S", 0.02)
    one, other = await gateway(), await gateway()
    (held,) = await taken(one, at_once(1))
    counted = await one.reserve("bbbbbbbb", at_once(1, requests_per_minute=5), 3, NOON)

    async def fail(_database: Database, _work: object) -> None:
        raise DatabaseBusy("gone")

    with monkeypatch.context() as patch:
        patch.setattr(Database, "count", fail)
        await one.settle(held, 0, 0.0)
        with pytest.raises(DatabaseBusy):
            await one.settle(counted, 3, 0.0)
        with pytest.raises(DatabaseBusy):
            await one.reserve(KEY, at_once(1), 0, NOON)
        with pytest.raises(DatabaseBusy):
            await other.reserve(KEY, at_once(1), 0, NOON)

    async def is_empty() -> bool:
        return await rows(database) == []

    await eventually(is_empty)
    assert len(await taken(other, at_once(1))) == 1


async def test_a_transaction_that_runs_again_takes_one_place(
    gateway: NewGateway, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await gateway()
    count = Database.count

    async def twice(self: Database, work: Any) -> Any:  # as if it had been told of a failure that was none
        await count(self, work)
        return await count(self, work)

    monkeypatch.setattr(Database, "count", twice)
    assert len(await taken(one, at_once(3))) == 3
    assert await rows(database) == [(KEY, 3)]


async def test_callers_that_go_take_no_place_with_them(gateway: NewGateway, database: Database) -> None:
    one, other = await gateway(), await gateway()
    limits = at_once(1, tokens_per_minute=1_000_000)
    choose = random.Random(7)
    num_gone = 0
    for _ in range(60):
        caller = asyncio.create_task(one.reserve(KEY, limits, 10, NOON))
        await asyncio.sleep(choose.random() / 100)
        caller.cancel()
        try:
            held = await caller
        except asyncio.CancelledError:
            num_gone += 1
            held = await one.reserve(KEY, limits, 10, NOON)  # its place is free at once
        await one.settle(held, 0, 0.0)
    assert num_gone > 0
    held = await other.reserve(KEY, limits, 10, NOON)
    assert held.used["minute"].tokens == 10
    assert await rows(database) == [(KEY, 1)]


async def test_a_caller_that_goes_in_the_moment_it_is_answered(
    gateway: NewGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await gateway()
    limits = at_once(1, tokens_per_minute=1000)
    answer = SqlUsageStore._answer
    caller = asyncio.create_task(one.reserve(KEY, limits, 10, NOON))

    def answer_and_go(self: SqlUsageStore, *arguments: Any) -> None:
        answer(self, *arguments)
        caller.cancel()

    with monkeypatch.context() as patch:
        patch.setattr(SqlUsageStore, "_answer", answer_and_go)
        with pytest.raises(asyncio.CancelledError):
            await caller
    assert (await one.reserve(KEY, limits, 10, NOON)).used["minute"].tokens == 10


async def test_a_gateway_that_ends_gives_its_places_back(gateway: NewGateway, database: Database) -> None:
    one, other = await gateway(), await gateway()
    assert len(await taken(one, at_once(2))) == 2
    await one.close()
    assert await rows(database) == []
    assert len(await taken(other, at_once(2))) == 2
