"""What every store of decisions and feedback must do, whatever database is below it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from adapters_registry.decisions import DecisionQuery, Feedback
from adapters_registry.stores import sql_decisions
from adapters_registry.stores.database import Database
from adapters_registry.stores.sql import SqlAdapterStore
from adapters_registry.stores.sql_decisions import SqlDecisionStore
from tests.support.decisions import NOON, decision


@pytest.fixture
def store(database: Database) -> SqlDecisionStore:
    return SqlDecisionStore(database)


async def ids(store: SqlDecisionStore, query: DecisionQuery) -> list[str]:
    return [found.request_id for found in (await store.recent(query)).decisions]


async def test_what_goes_in_comes_out(store: SqlDecisionStore) -> None:
    whole = decision(
        experts=("a@00000001", "b@00000002"), recipe="mix(a@00000001*0.5,b@00000002*0.5)", ttft_ms=3.5,
        text="two\nlines \U0001f600", embedder="mini", embedding=b"\x00\xff" * 4,
    )  # fmt: skip
    bare = decision("s", kind="base", policy=None, recipe="base", experts=(), confidence=None)
    await store.add([whole, bare])
    await store.add([])
    page = await store.recent(DecisionQuery())
    assert page.next is None
    second, first = page.decisions
    assert replace(second, number=0) == bare
    assert replace(first, number=0) == replace(whole, embedding=None)
    (embedded,) = (await store.recent(DecisionQuery(embedded=True))).decisions
    assert replace(embedded, number=0) == whole


async def test_many_at_once_stay_in_order(store: SqlDecisionStore) -> None:
    made = [
        decision(str(number), text=f"text {number}", cost=number / 8) for number in range(2 * sql_decisions.CHUNK + 3)
    ]
    await store.add(made)
    found = (await store.recent(DecisionQuery(len(made)))).decisions
    assert [replace(each, number=0) for each in reversed(found)] == made
    numbers = [each.number for each in found]
    assert numbers == sorted(numbers, reverse=True)


async def test_texts_that_a_database_would_refuse(store: SqlDecisionStore) -> None:
    await store.add([decision(text="nul\0 and lone \ud800 surrogate", embedder="e" * 1000)])
    (found,) = (await store.recent(DecisionQuery())).decisions
    assert found.text == "nul\ufffd and lone ? surrogate"


async def test_pages_hold_every_decision_once(store: SqlDecisionStore) -> None:
    await store.add([decision(str(number)) for number in range(25)])
    seen, before = [], None
    while True:
        page = await store.recent(DecisionQuery(10, before=before))
        seen += [int(found.request_id) for found in page.decisions]
        if (before := page.next) is None:
            break
        await store.add([decision("99")])  # what comes meanwhile moves no page
    assert seen == list(range(24, -1, -1))


async def test_conditions(store: SqlDecisionStore) -> None:
    await store.add(
        [
            decision("sql"),
            decision("mysql", experts=("mysql@00000003",), key_id="bbbbbbbb"),
            decision("under", experts=("s_l@00000004", "sql@00000005"), policy="other"),
            decision("none", experts=(), recipe="base", abstained=True, at=NOON + timedelta(days=1)),
        ]
    )
    await store.rate(Feedback("aaaaaaaa", "sql", NOON, 1.0))
    for query, wanted in (
        (DecisionQuery(expert="sql"), ["under", "sql"]),
        (DecisionQuery(expert="s_l"), ["under"]),
        (DecisionQuery(expert="sql@00000001"), ["sql"]),
        (DecisionQuery(expert="ql"), []),
        (DecisionQuery(policy="other"), ["under"]),
        (DecisionQuery(policy="' OR 1=1 --"), []),
        (DecisionQuery(abstained=True), ["none"]),
        (DecisionQuery(abstained=False, policy="auto"), ["mysql", "sql"]),
        (DecisionQuery(since=NOON + timedelta(seconds=1)), ["none"]),
        (DecisionQuery(request_id="mysql"), ["mysql"]),
        (DecisionQuery(request_id="mysql", key_id="aaaaaaaa"), []),
        (DecisionQuery(rated=True), ["sql"]),
        (DecisionQuery(rated=False), ["none", "under", "mysql"]),
        (DecisionQuery(2), ["none", "under"]),
    ):
        assert await ids(store, query) == wanted, query


async def test_a_search_reads_a_bounded_part_and_says_where_to_go_on(
    store: SqlDecisionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_decisions, "MAX_EXAMINED", 10)
    await store.add([decision("rare", policy="rare"), *(decision(str(number)) for number in range(24))])
    query, pages = DecisionQuery(policy="rare"), []
    while True:
        page = await store.recent(query)
        pages.append([found.request_id for found in page.decisions])
        if page.next is None:
            break
        query = replace(query, before=page.next)
    assert pages == [[], [], ["rare"]]


async def test_an_opinion_belongs_to_the_request_of_its_key(store: SqlDecisionStore) -> None:
    mine, theirs = decision("r"), decision("r", key_id="bbbbbbbb", policy="other")
    await store.add([mine, theirs])
    for absent in (Feedback("aaaaaaaa", "absent", NOON, 1.0), Feedback("cccccccc", "r", NOON, 1.0)):
        assert await store.rate(absent) is None
    assert await ids(store, DecisionQuery(rated=True)) == []
    rated = await store.rate(Feedback("aaaaaaaa", "r", NOON, -1.0, "wrong", "dates"))
    assert rated is not None
    assert (replace(rated[0], number=0), rated[1]) == (mine, True)
    again = Feedback("aaaaaaaa", "r", NOON + timedelta(seconds=1), 0.5)
    rated = await store.rate(again)
    assert rated is not None
    assert not rated[1]
    (found,) = (await store.recent(DecisionQuery(rated=True))).decisions
    assert found.feedback == again
    assert found.key_id == "aaaaaaaa"


async def test_of_one_request_id_used_twice_the_newest_is_told(store: SqlDecisionStore) -> None:
    await store.add([decision("r", policy="first"), decision("r", policy="second")])
    rated = await store.rate(Feedback("aaaaaaaa", "r", NOON, 1.0))
    assert rated is not None
    assert rated[0].policy == "second"


async def test_old_ones_go_in_small_steps(store: SqlDecisionStore) -> None:
    await store.add([decision(str(number), at=NOON + timedelta(days=number % 2)) for number in range(10)])
    for number in range(4):
        await store.rate(Feedback("aaaaaaaa", str(number), NOON + timedelta(days=number % 2), 1.0))
    cut = NOON + timedelta(hours=1)
    assert [await store.prune(cut, 3) for _ in range(3)] == [3 + 2, 2, 0]
    assert await ids(store, DecisionQuery()) == ["9", "7", "5", "3", "1"]
    assert await ids(store, DecisionQuery(rated=True)) == ["3", "1"]


async def test_many_writers_at_once_and_the_librarys_revision_stays(
    store: SqlDecisionStore, database: Database, url: str, new_database: Callable[[], Database]
) -> None:
    revision = await SqlAdapterStore(database).revision()
    others = [SqlDecisionStore(new_database()) for _ in range(2)]
    batches = [[decision(f"{batch}-{number}") for number in range(20)] for batch in range(9)]
    await asyncio.gather(*((store, *others)[n % 3].add(batch) for n, batch in enumerate(batches)))
    found = await ids(store, DecisionQuery(500))
    assert sorted(found) == sorted(one.request_id for batch in batches for one in batch)
    assert await SqlAdapterStore(database).revision() == revision


@pytest.fixture
async def new_database(url: str) -> AsyncIterator[Callable[[], Database]]:
    """Further connections to the same database, as other gateways have."""
    made: list[Database] = []

    def make() -> Database:
        made.append(Database(url, max_attempts=30))
        return made[-1]

    yield make
    for each in made:
        await each.close()


@pytest.mark.parametrize(
    ("recipe", "experts", "answered_by"),
    [
        ("base", (), "base"),
        ("sql@00000001", ("sql@00000001",), "sql"),
        ("mix(sql@00000001*0.3)", ("sql@00000001",), "mix"),
        ("gate(uniform,k=1,t=1;a@00000001)", ("a@00000001",), "gate"),
    ],
)
def test_who_answered(recipe: str, experts: tuple[str, ...], answered_by: str) -> None:
    assert decision(recipe=recipe, experts=experts).answered_by == answered_by
