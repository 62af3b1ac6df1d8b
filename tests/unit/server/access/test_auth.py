"""Authentication: which principal is behind which headers, and what is remembered while the store changes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from adapters_registry.errors import DatabaseBusy
from adapters_registry.key_limits import KeyLimits
from adapters_registry.keys import new_key
from adapters_registry.library import Library
from adapters_registry.records import KeyRecord, utc_now
from adapters_registry.stores.base import KeyStore
from server.access.auth import ANONYMOUS, Authenticator
from server.errors import AuthenticationFailed, PermissionDenied
from tests.support.waiting import eventually

HERE = {"host": "127.0.0.1:8080"}


class CountingStore:
    """A key store that counts the lookups, and can be away.

    Args:
        keys: The store behind it.
    """

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys
        self.num_lookups = 0
        self.is_away = False

    def _look_up(self) -> None:
        self.num_lookups += 1
        if self.is_away:
            raise DatabaseBusy("away")

    async def find(self, key_id: str) -> KeyRecord | None:
        self._look_up()
        return await self._keys.find(key_id)

    async def list(self) -> tuple[KeyRecord, ...]:
        self._look_up()
        return await self._keys.list()

    async def add(self, record: KeyRecord, **options: Any) -> None:
        await self._keys.add(record, **options)


@pytest.fixture
async def library(tmp_path: Path) -> AsyncIterator[Library]:
    library = await Library.open(tmp_path)
    yield library
    await library.close()


async def added(library: Library, name: str = "app", **options: Any) -> tuple[KeyRecord, str]:
    record, plaintext = new_key(name, **options)
    await library.keys.add(record)
    return record, plaintext


def bearer(plaintext: str) -> dict[str, str]:
    return {"authorization": f"Bearer {plaintext}"}


async def test_a_key_is_found_in_either_header(library: Library) -> None:
    record, plaintext = await added(library, scopes=("infer", "metrics"), limits=KeyLimits(max_concurrency=3))
    authenticator = Authenticator(library.keys)
    for headers in (bearer(plaintext), {"authorization": f"bearer  {plaintext} "}, {"x-api-key": plaintext}):
        principal = await authenticator.authenticate(headers)
        assert (principal.key_id, principal.name) == (record.key_id, "app")
        assert principal.scopes == {"infer", "metrics"}
        assert principal.limits == KeyLimits(max_concurrency=3)


async def test_a_key_without_limits_has_none(library: Library) -> None:
    _, plaintext = await added(library)
    assert (await Authenticator(library.keys).authenticate(bearer(plaintext))).limits is None


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, "No API key"),
        ({"authorization": "Basic abc"}, "No API key"),
        ({"authorization": "Bearer "}, "No API key"),
        (bearer("mg-00000000-" + "x" * 43), "unknown, revoked or expired"),
        (bearer("anything"), "unknown, revoked or expired"),
        ({"x-api-key": "anything"}, "unknown, revoked or expired"),
    ],
)
async def test_without_a_good_key_nobody_gets_in(library: Library, headers: dict[str, str], message: str) -> None:
    await added(library)
    with pytest.raises(AuthenticationFailed, match=message):
        await Authenticator(library.keys).authenticate(HERE | headers)


async def test_a_key_ends_when_it_expires_even_if_it_is_remembered(library: Library) -> None:
    store = CountingStore(library.keys)
    authenticator = Authenticator(store)  # type: ignore[arg-type]
    _, plaintext = await added(library, expires_at=utc_now() + timedelta(seconds=1))

    async def is_unknown() -> bool:
        return (await authenticator.authenticate(bearer(plaintext))).name != "app"

    with pytest.raises(AuthenticationFailed, match="expired"):
        await eventually(is_unknown)
    assert store.num_lookups == 2  # the key, and at the end whether any key exists


async def test_scopes_are_required(library: Library) -> None:
    _, plaintext = await added(library, scopes=("infer",))
    authenticator = Authenticator(library.keys)
    assert (await authenticator.authorise(bearer(plaintext), "admin", "infer")).name == "app"
    with pytest.raises(PermissionDenied, match="'admin'"):
        await authenticator.authorise(bearer(plaintext), "admin")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8080", "[::1]:8080"])
async def test_until_a_key_exists_this_machine_needs_none(library: Library, host: str) -> None:
    authenticator = Authenticator(library.keys)
    for headers in ({}, bearer("EMPTY"), {"origin": "http://localhost:3000"}):
        assert await authenticator.authenticate({"host": host, **headers}) is ANONYMOUS
    record, _ = await added(library)
    authenticator.forget({record.key_id})
    with pytest.raises(AuthenticationFailed):
        await authenticator.authenticate({"host": host})


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "evil.example"},
        {"host": "localhost", "origin": "https://evil.example"},
        {"host": "localhost", "origin": "null"},
        {"host": "[localhost"},
    ],
)
async def test_web_pages_of_other_sites_are_refused_without_keys(library: Library, headers: Mapping[str, str]) -> None:
    with pytest.raises(PermissionDenied, match="Without API keys"):
        await Authenticator(library.keys).authenticate(headers)


async def test_keys_are_looked_up_once_and_survive_a_store_that_is_away(library: Library) -> None:
    (one, plaintext_one), (_, plaintext_two) = await added(library, "one"), await added(library, "two")
    store = CountingStore(library.keys)
    authenticator = Authenticator(store)  # type: ignore[arg-type]
    for _ in range(3):
        await authenticator.authenticate(bearer(plaintext_one))
        await authenticator.authenticate(bearer(plaintext_two))
    assert store.num_lookups == 2
    store.is_away = True
    authenticator.forget({one.key_id})
    assert (await authenticator.authenticate(bearer(plaintext_two))).name == "two"
    with pytest.raises(DatabaseBusy):
        await authenticator.authenticate(bearer(plaintext_one))
    store.is_away = False
    assert (await authenticator.authenticate(bearer(plaintext_one))).name == "one"
    authenticator.forget()
    store.is_away = True
    with pytest.raises(DatabaseBusy):
        await authenticator.authenticate(bearer(plaintext_two))


async def test_a_secret_of_no_key_is_asked_for_again_after_a_change(library: Library) -> None:
    other, _ = await added(library, "other")
    record, plaintext = new_key("late")
    authenticator = Authenticator(library.keys)
    with pytest.raises(AuthenticationFailed):
        await authenticator.authenticate(bearer(plaintext))
    await library.keys.add(record)
    with pytest.raises(AuthenticationFailed):  # the answer is remembered
        await authenticator.authenticate(bearer(plaintext))
    authenticator.forget({other.key_id})
    assert (await authenticator.authenticate(bearer(plaintext))).name == "late"


async def test_a_revoked_key_is_refused_once_it_is_forgotten(library: Library) -> None:
    record, plaintext = await added(library)
    await added(library, "stays")
    authenticator = Authenticator(library.keys)
    await authenticator.authenticate(bearer(plaintext))
    await library.keys.revoke(record.key_id)
    authenticator.forget({record.key_id})
    with pytest.raises(AuthenticationFailed):
        await authenticator.authenticate(bearer(plaintext))
