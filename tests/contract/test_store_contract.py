"""What every store of adapters and keys must do, whatever database is below it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters_registry.errors import (
    AdapterNotFound,
    DatabaseBusy,
    KeyNotFound,
    NameTaken,
    NotRetired,
    Problem,
    WrongState,
)
from adapters_registry.key_limits import KeyLimits, OverLimit, Reservation
from adapters_registry.keys import new_key
from adapters_registry.records import (
    AdapterRecord,
    Card,
    Change,
    LibraryChanges,
    NearestExpert,
    ProbeReport,
    Transition,
    utc_now,
)
from adapters_registry.states import SERVING, TRANSITIONS, AdapterState
from adapters_registry.stores.base import AdapterStore, KeyStore, UsageStore
from adapters_registry.stores.database import Database
from adapters_registry.stores.sql import SqlAdapterStore
from adapters_registry.stores.sql_keys import SqlKeyStore
from adapters_registry.stores.sql_usage import SqlUsageStore

REPORT = ProbeReport(
    at=datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
    num_prompts=3,
    base_distance=0.25,
    nearest_other=NearestExpert(expert="dates@00000000", distance=0.5),
    problems=(Problem("probe.gate", "scores 0.1", "Train it further."),),
)


@pytest.fixture
def adapters(database: Database) -> AdapterStore:
    return SqlAdapterStore(database)


@pytest.fixture
def keys(database: Database) -> KeyStore:
    return SqlKeyStore(database)


@pytest.fixture
def usage(database: Database) -> UsageStore:
    return SqlUsageStore(database)


def record(name: str = "sql", content: int = 1, *examples: str, description: str = "") -> AdapterRecord:
    sha256 = f"{content:08x}" + "0" * 56
    return AdapterRecord(
        name=name,
        version=sha256[:8],
        sha256=sha256,
        state=AdapterState.ACTIVE,
        card=Card(description=description, tags=["a", "ü", "\U0001f40d"]),
        examples=examples,
        rank=8,
        alpha=16.5,
        target_modules=("k_proj", "q_proj"),
        size_bytes=2**40,
        base_model="org/base",
        created_at=utc_now(),
        updated_at=utc_now(),
    )


# -- adapters ------------------------------------------------------------------------------------------------


async def test_what_goes_in_comes_out(adapters: AdapterStore) -> None:
    wanted = record("sql", 1, "first", "zwei \U0001f600", "", "first")
    stored = await adapters.activate(wanted)
    assert dataclasses.replace(stored, created_at=wanted.created_at, updated_at=wanted.updated_at) == wanted
    assert stored.created_at.utcoffset() == timedelta(0)
    assert abs(stored.created_at - wanted.created_at) < timedelta(minutes=1)
    assert await adapters.find("sql") == stored
    assert await adapters.find("sql", wanted.version) == stored
    assert await adapters.list() == (stored,)


async def test_an_empty_store(adapters: AdapterStore) -> None:
    assert await adapters.find("sql") is None
    assert await adapters.find("sql", "00000000") is None
    assert await adapters.list() == ()
    assert await adapters.contents_in_use() == frozenset()


async def test_one_active_version(adapters: AdapterStore) -> None:
    for content in (1, 2, 3, 2):
        active = await adapters.activate(record("sql", content))
        assert await adapters.list(AdapterState.ACTIVE) == (active,)
    assert len(await adapters.list(AdapterState.DRAINING)) == 2
    assert len(await adapters.list(AdapterState.ACTIVE, AdapterState.DRAINING)) == 3


async def test_lists_are_sorted(adapters: AdapterStore) -> None:
    for number, name in enumerate(["c", "a", "b"]):
        await adapters.activate(record(name, number))
    assert [found.name for found in await adapters.list()] == ["a", "b", "c"]


async def test_many_adapters_with_examples(adapters: AdapterStore) -> None:
    for number in range(30):
        await adapters.activate(record(f"n{number:02}", number, *(f"{number}-{i}" for i in range(40))))
    found = await adapters.list()
    assert [len(one.examples) for one in found] == [40] * 30
    assert found[7].examples[39] == "7-39"


async def test_the_same_version_again(adapters: AdapterStore) -> None:
    first = await adapters.activate(record("sql", 1, "a"))
    assert await adapters.activate(record("sql", 1, "a")) == first
    changed = await adapters.activate(record("sql", 1, "b", "a", description="new"))
    assert (changed.examples, changed.card.description) == (("b", "a"), "new")
    assert changed.created_at == first.created_at
    assert len(await adapters.list()) == 1


async def test_colliding_versions(adapters: AdapterStore) -> None:
    await adapters.activate(record("sql", 1))
    other = dataclasses.replace(record("math", 1), sha256="00000001" + "f" * 56)
    with pytest.raises(NameTaken):
        await adapters.activate(other)
    with pytest.raises(NameTaken):
        await adapters.activate(dataclasses.replace(other, name="sql"))
    assert len(await adapters.list()) == 1


async def test_retiring(adapters: AdapterStore) -> None:
    stored = await adapters.activate(record())
    retired = await adapters.retire("sql", stored.version)
    assert retired.state == AdapterState.RETIRED
    assert retired.updated_at >= stored.updated_at
    assert await adapters.find("sql") is None
    assert await adapters.find("sql", stored.version) == retired
    for name, version in (("sql", stored.version), ("sql", "ffffffff"), ("other", stored.version)):
        with pytest.raises(AdapterNotFound):
            await adapters.retire(name, version)


async def test_a_version_is_probed_before_it_is_offered(adapters: AdapterStore) -> None:
    old = await adapters.activate(record("sql", 1))
    new = await adapters.register(record("sql", 2), Change("me", "retrained"))
    assert (new.state, await adapters.find("sql")) == (AdapterState.REGISTERED, old)
    with pytest.raises(WrongState, match="registered and cannot become active"):
        await adapters.move("sql", new.version, Transition(AdapterState.ACTIVE))
    for state in (AdapterState.VALIDATING, AdapterState.READY, AdapterState.ACTIVE):
        moved = await adapters.move("sql", new.version, Transition(state, report=REPORT), Change("me"))
        assert (moved.state, moved.report) == (state, REPORT)
    assert await adapters.find("sql") == moved
    assert (await adapters.versions("sql"))[1].state == AdapterState.DRAINING
    back = await adapters.move("sql", old.version, Transition(AdapterState.ACTIVE), Change("me", "worse"))
    assert await adapters.find("sql") == back
    assert [entry.to_state for entry in await adapters.audit("sql", limit=2)] == ["active", "draining"]
    whole = [
        (e.action, e.from_state, e.to_state, e.actor, e.reason) for e in await adapters.audit(f"sql@{new.version}")
    ]
    assert whole[-1] == ("register", None, "registered", "me", "retrained")
    assert whole[0] == ("drain", "active", "draining", "me", f"replaced by sql@{old.version}")
    numbers = [entry.number for entry in await adapters.audit()]
    assert numbers == sorted(numbers, reverse=True)
    assert [entry.number for entry in await adapters.audit(before=numbers[2], limit=2)] == numbers[3:5]
    assert await adapters.audit("sq") == ()


async def test_one_canary_with_a_share(adapters: AdapterStore) -> None:
    await adapters.activate(record("sql", 1))
    ids = []
    for content in (2, 3):
        stored = await adapters.register(record("sql", content))
        await adapters.move("sql", stored.version, Transition(AdapterState.READY))
        ids.append((await adapters.move("sql", stored.version, Transition(AdapterState.CANARY, share=0.25))).version)
    first, second = ids
    assert [(r.version, r.share) for r in await adapters.list(AdapterState.CANARY)] == [(second, 0.25)]
    revision = await adapters.revision()
    assert (await adapters.move("sql", second, Transition(AdapterState.CANARY, share=0.25))).share == 0.25
    assert await adapters.revision() == revision
    assert (await adapters.move("sql", second, Transition(AdapterState.CANARY, share=0.5))).share == 0.5
    assert await adapters.revision() > revision
    promoted = await adapters.move("sql", second, Transition(AdapterState.ACTIVE))
    assert (promoted.share, (await adapters.find("sql", first)).state) == (None, AdapterState.READY)  # type: ignore[union-attr]


async def test_a_way_of_several_steps_is_gone_as_a_whole_or_not_at_all(adapters: AdapterStore) -> None:
    stored = await adapters.register(record("sql", 1))
    with pytest.raises(WrongState):
        await adapters.move("sql", stored.version, Transition(AdapterState.DRAINING, through=(AdapterState.READY,)))
    assert (await adapters.versions("sql"))[0].state is AdapterState.REGISTERED
    way = (AdapterState.VALIDATING, AdapterState.READY)
    moved = await adapters.move("sql", stored.version, Transition(AdapterState.ACTIVE, through=way, report=REPORT))
    assert (moved.state, moved.report) == (AdapterState.ACTIVE, REPORT)
    assert [entry.to_state for entry in await adapters.audit("sql", limit=3)] == ["active", "ready", "validating"]


async def test_one_of_several_who_try_succeeds(adapters: AdapterStore) -> None:
    stored = await adapters.register(record("sql", 1))
    moves = (
        adapters.move("sql", stored.version, Transition(AdapterState.VALIDATING, expected=AdapterState.REGISTERED))
        for _ in range(8)
    )
    answers = await asyncio.gather(*moves, return_exceptions=True)
    assert sum(isinstance(answer, AdapterRecord) for answer in answers) == 1
    assert sum(isinstance(answer, WrongState) for answer in answers) == 7


async def test_a_version_without_files_does_not_come_back_by_itself(adapters: AdapterStore) -> None:
    stored = await adapters.activate(record("sql", 1))
    await adapters.retire("sql", stored.version)
    await adapters.mark_purged("sql", stored.version)
    with pytest.raises(WrongState, match="registered"):
        await adapters.move("sql", stored.version, Transition(AdapterState.ACTIVE))
    assert not (await adapters.activate(record("sql", 1))).is_purged


@pytest.mark.parametrize("seed", range(3))
async def test_no_walk_leaves_the_table(adapters: AdapterStore, seed: int) -> None:
    choose = random.Random(seed)
    last: dict[str, str | None] = {}
    for _ in range(150):
        name, content = choose.choice(["a", "b"]), choose.randrange(3)
        try:
            if choose.random() < 0.2:
                await adapters.register(record(name, content))
            else:
                version = record(name, content).version
                await adapters.move(name, version, Transition(choose.choice(list(AdapterState)), share=0.1))
        except (WrongState, AdapterNotFound):
            continue
        for state in (AdapterState.ACTIVE, AdapterState.CANARY):
            names = [found.name for found in await adapters.list(state)]
            assert len(names) == len(set(names))
    for entry in reversed(await adapters.audit(limit=1000)):
        assert entry.from_state == last.get(entry.subject)
        if entry.from_state and entry.from_state != entry.to_state:
            assert entry.to_state in TRANSITIONS[AdapterState(entry.from_state)]
        last[entry.subject] = entry.to_state
    assert last == {found.expert_id: found.state for found in await adapters.list()}


async def test_examples(adapters: AdapterStore) -> None:
    stored = await adapters.activate(record("sql", 1, "a", "b"))
    assert (await adapters.set_examples("sql", stored.version, ["x"])).examples == ("x",)
    assert (await adapters.set_examples("sql", stored.version, [])).examples == ()
    with pytest.raises(AdapterNotFound):
        await adapters.set_examples("sql", "ffffffff", ["x"])


async def test_following_changes_gives_what_reading_all_gives(adapters: AdapterStore, keys: KeyStore) -> None:
    rng, known, seen = random.Random(5), dict[str, AdapterRecord](), 0
    await adapters.activate(record("old", 900, "before"))
    for step in range(40):
        for _ in range(rng.randint(0, 3)):
            name, content = f"n{rng.randint(0, 4)}", rng.randint(0, 4)
            mine = record(name, 5 * int(name[1:]) + content + 1, *(f"{step}-{row}" for row in range(rng.randint(0, 3))))
            with contextlib.suppress(AdapterNotFound, NotRetired):
                match rng.randint(0, 5):
                    case 0:
                        await adapters.register(mine)
                    case 1:
                        await adapters.retire(name, mine.version)
                    case 2:
                        await adapters.set_examples(name, mine.version, [f"{step}"])
                    case 3:
                        await adapters.mark_purged(name, mine.version)
                    case _:
                        await adapters.activate(mine)
        if step % 7 == 3:
            await keys.add(new_key("someone")[0])
        changes = await adapters.changes(seen, *SERVING)
        assert changes.is_whole == (seen == 0)
        assert changes.revision == await adapters.revision()
        known = {} if changes.is_whole else known
        for each in changes.records:
            known.pop(each.expert_id, None)
            if each.state in SERVING:
                known[each.expert_id] = each
        seen = changes.number
        assert known == {each.expert_id: each for each in await adapters.list(*SERVING)}
    assert (await adapters.changes(seen, *SERVING)).records == ()


async def test_following_tells_which_keys_were_changed(adapters: AdapterStore, keys: KeyStore) -> None:
    await adapters.activate(record("one", 1))
    (first, _), (second, _) = new_key("first"), new_key("second")
    for key in (first, second):
        await keys.add(key)
    seen = (await adapters.changes(0)).number
    await adapters.activate(record("two", 2))
    library_only = await adapters.changes(seen)
    assert ([each.name for each in library_only.records], library_only.keys) == (["two"], frozenset())
    await keys.replace_secret(first.key_id, "0" * 64)
    await keys.revoke(second.key_id)
    changes = await adapters.changes(library_only.number)
    assert (changes.records, changes.keys) == ((), {first.key_id, second.key_id})


async def test_following_reads_all_if_it_cannot_tell_what_is_new(
    adapters: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await adapters.changes(0) == LibraryChanges(await adapters.revision(), 0, (), is_whole=True)
    for number in range(4):
        await adapters.activate(record(f"n{number}", number + 1, "x"))
    everything = await adapters.list()
    number = (await adapters.changes(0)).number
    another_database = await adapters.changes(number + 1)
    assert (another_database.is_whole, another_database.records) == (True, everything)
    monkeypatch.setattr("adapters_registry.stores.sql._MAX_IDS_PER_QUERY", 3)
    too_many = await adapters.changes(1)
    assert (too_many.is_whole, too_many.records) == (True, everything)
    await adapters.set_examples("n2", everything[2].version, ["y"])
    few = await adapters.changes(number)
    assert ([each.name for each in few.records], few.is_whole) == (["n2"], False)


async def test_contents_in_use(adapters: AdapterStore) -> None:
    one, two = await adapters.activate(record("one", 1)), await adapters.activate(record("two", 1))
    with pytest.raises(NotRetired):
        await adapters.mark_purged("one", one.version)
    with pytest.raises(AdapterNotFound):
        await adapters.mark_purged("three", one.version)
    await adapters.retire("one", one.version)
    assert await adapters.mark_purged("one", one.version) == one.sha256
    assert await adapters.contents_in_use() == {one.sha256}
    await adapters.retire("two", two.version)
    await adapters.mark_purged("two", two.version)
    assert await adapters.contents_in_use() == frozenset()
    await adapters.activate(record("one", 1))
    assert await adapters.contents_in_use() == {one.sha256}


async def test_every_change_raises_the_revision_and_nothing_else_does(adapters: AdapterStore, keys: KeyStore) -> None:
    seen = [await adapters.revision()]

    async def rose() -> bool:
        seen.append(await adapters.revision())
        return seen[-1] > seen[-2]

    stored = await adapters.activate(record("sql", 1, "a"), Change("me"))
    assert await rose()
    await adapters.activate(record("sql", 1, "a"))
    assert not await rose()
    await adapters.set_examples("sql", stored.version, ["a"])
    assert not await rose()
    await adapters.set_examples("sql", stored.version, ["b"], actor="x" * 1000 + "\0")
    assert await rose()
    await adapters.retire("sql", stored.version)
    assert await rose()
    await adapters.mark_purged("sql", stored.version)
    assert await rose()
    key, _ = new_key("k")
    await keys.add(key)
    assert await rose()
    await keys.revoke(key.key_id)
    assert await rose()
    await keys.revoke(key.key_id)
    assert not await rose()


async def test_a_version_is_its_names_tenants_unless_it_says_otherwise(adapters: AdapterStore) -> None:
    def of(content: int, tenant: str | None) -> AdapterRecord:
        return dataclasses.replace(record(content=content), card=Card(description=str(content), tenant=tenant))

    async def tenant_of(content: int, tenant: str | None) -> str | None:
        stored = await adapters.register(of(content, tenant))
        assert (await adapters.find(stored.name, stored.version)) == stored
        return stored.card.tenant

    assert await tenant_of(1, None) is None
    assert await tenant_of(2, "bank") == "bank"
    await adapters.activate(of(2, "bank"))
    assert await tenant_of(3, "insurer") == "insurer"
    assert await tenant_of(4, None) == "bank"  # the active one's, not the newest's
    await adapters.retire("sql", of(2, None).version)
    assert await tenant_of(5, None) == "bank"  # the newest's
    assert await tenant_of(3, None) == "insurer"  # its own
    assert await tenant_of(6, "") == ""
    assert await tenant_of(7, None) == ""


async def test_many_writers_at_once(adapters: AdapterStore) -> None:
    await asyncio.gather(*(adapters.activate(record("sql", number, "a")) for number in range(20)))
    assert len(await adapters.list(AdapterState.ACTIVE)) == 1
    assert len(await adapters.list()) == 20
    assert await adapters.revision() >= 20


# -- keys ----------------------------------------------------------------------------------------------------


async def test_keys_come_back(keys: KeyStore) -> None:
    expires_at = datetime(2030, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    first, _ = new_key("first", scopes=["infer", "admin"], experts=["sql*", "math"], expires_at=expires_at)
    second, _ = new_key("second")
    await keys.add(first)
    await keys.add(second)
    assert await keys.find(first.key_id) == first
    assert set(await keys.list()) == {first, second}
    assert await keys.find("ffffffff") is None
    with pytest.raises(NameTaken):
        await keys.add(first)


async def test_revoking(keys: KeyStore) -> None:
    key, _ = new_key("k")
    await keys.add(key)
    revoked = await keys.revoke(key.key_id, actor="me")
    assert revoked.revoked_at is not None
    assert not revoked.is_usable()
    assert await keys.revoke(key.key_id) == revoked
    assert await keys.find(key.key_id) == revoked
    with pytest.raises(KeyNotFound):
        await keys.revoke("ffffffff")


# -- usage ----------------------------------------------------------------------------------------------------------

NOON = datetime(2026, 2, 28, 12, 0, 30, tzinfo=UTC)


async def test_keys_keep_what_they_see_and_limits(keys: KeyStore) -> None:
    limits = KeyLimits(requests_per_minute=3, budget_per_month=0.25)
    key, _ = new_key("app", policies=["auto", "team-*"], tags=["ü", "open"], tenant="bank", limits=limits)
    await keys.add(key)
    assert await keys.find(key.key_id) == key


async def test_requests_are_counted_exactly_however_many_come_at_once(url: str, database: Database) -> None:
    limits = KeyLimits(requests_per_minute=20, tokens_per_minute=10_000)
    others = [Database(url, max_attempts=30) for _ in range(2)]  # as other gateways have
    stores = [SqlUsageStore(each) for each in (database, *others)]
    results = await asyncio.gather(
        *(stores[n % 3].reserve("aaaaaaaa", limits, 7, NOON) for n in range(60)), return_exceptions=True
    )
    taken = [each for each in results if isinstance(each, Reservation)]
    assert len(taken) == 20
    assert sorted(each.used["minute"].requests for each in taken) == list(range(1, 21))
    assert all(isinstance(each, (Reservation, OverLimit)) for each in results), results
    (used,) = await stores[1].used("aaaaaaaa", limits, NOON)
    assert (used.requests, used.tokens) == (20, 140)
    for each in others:
        await each.close()


async def test_tokens_that_were_not_taken_are_given_back(usage: UsageStore) -> None:
    limits = KeyLimits(tokens_per_minute=100)
    first = await usage.reserve("k", limits, 80, NOON)
    with pytest.raises(OverLimit, match="tokens_per_minute") as refused:
        await usage.reserve("k", limits, 21, NOON)
    assert refused.value.used.tokens == 80
    await usage.settle(first, 30, 0.0)
    assert (await usage.reserve("k", limits, 70, NOON)).used["minute"].tokens == 100
    assert (await usage.used("k", limits, NOON))[0].requests == 2  # the refused one left nothing
    assert (await usage.used("other", limits, NOON))[0].requests == 0


async def test_budgets_by_day_and_month(usage: UsageStore) -> None:
    limits = KeyLimits(budget_per_day=1.0, budget_per_month=2.5)
    for day in (27, 28):
        moment = NOON.replace(day=day)
        for _ in range(2):
            await usage.settle(await usage.reserve("k", limits, 5, moment), 5, 0.5)
        with pytest.raises(OverLimit, match="budget_per_day") as refused:
            await usage.reserve("k", limits, 5, moment)
        assert refused.value.used.window.ends_at == moment.replace(hour=0, minute=0, second=0).timestamp() + 86400
    march = NOON + timedelta(days=1)
    daily, monthly = await usage.used("k", limits, NOON)
    assert (daily.cost, monthly.cost) == (1.0, 2.0)
    assert [each.cost for each in await usage.used("k", limits, march)] == [0.0, 0.0]
    more = KeyLimits(budget_per_day=100.0, budget_per_month=2.0)
    with pytest.raises(OverLimit, match="budget_per_month") as refused:
        await usage.reserve("k", more, 5, NOON)
    assert refused.value.used.window.ends_at == datetime(2026, 3, 1, tzinfo=UTC).timestamp()
    await usage.reserve("k", more, 5, march)


async def test_a_clock_that_jumps_forgets_no_budget(usage: UsageStore) -> None:
    limits = KeyLimits(requests_per_minute=9, budget_per_day=0.5, budget_per_month=9.0)
    for moment in (NOON, NOON - timedelta(hours=30), NOON + timedelta(days=40), NOON):
        await usage.settle(await usage.reserve("k", limits, 1, moment), 1, 0.25)
    with pytest.raises(OverLimit, match="budget_per_day"):
        await usage.reserve("k", limits, 1, NOON)
    await usage.reserve("k", limits, 1, NOON - timedelta(hours=30))


async def test_the_next_minute_is_a_new_one_and_old_ones_are_forgotten(usage: UsageStore, database: Database) -> None:
    limits = KeyLimits(requests_per_minute=1)
    for minute in range(0, 200, 20):
        await usage.reserve("k", limits, 0, NOON + timedelta(minutes=minute))

    async def count(connection: AsyncConnection) -> int:
        return int((await connection.execute(sa.text("SELECT count(*) FROM usage"))).scalar_one())

    assert await database.read(count) == 4  # an hour's


async def test_a_caller_that_goes_and_a_database_that_fails_hurt_nobody_else(
    usage: SqlUsageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = KeyLimits(requests_per_minute=4)
    tasks = [asyncio.create_task(usage.reserve("k", limits, 1, NOON)) for _ in range(4)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in results] == [Reservation, asyncio.CancelledError, Reservation, Reservation]

    async def fail(_work: object) -> None:
        raise DatabaseBusy("gone")

    with monkeypatch.context() as patch:
        patch.setattr(Database, "count", lambda _self, work: fail(work))
        failed = await asyncio.gather(
            *(usage.reserve("other", limits, 1, NOON) for _ in range(3)), return_exceptions=True
        )
    assert [type(each) for each in failed] == [DatabaseBusy] * 3
    assert (await usage.reserve("other", limits, 1, NOON)).used["minute"].requests == 1
