"""A library goes into a file and comes out of it the same, on either database; hostile files change nothing."""

from __future__ import annotations

import io
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from adapters_registry import backup
from adapters_registry.checks.base_spec import BaseSpec
from adapters_registry.errors import BadBackup, InvalidAdapter, NotEmpty
from adapters_registry.key_limits import KeyLimits
from adapters_registry.keys import new_key
from adapters_registry.library import Library
from adapters_registry.limits import AdapterLimits
from adapters_registry.records import Card, Change, Manifest, Publication, Transition
from adapters_registry.states import AdapterState

Write = Callable[..., Path]


def quiet(_done: int, _total: int) -> None:
    return


@pytest.fixture(params=["sqlite", "postgresql"])
async def restored(
    request: pytest.FixtureRequest, tmp_path: Path, base: BaseSpec, limits: AdapterLimits
) -> AsyncIterator[Library]:
    """An empty library in another home, on either database."""
    url = str(request.getfixturevalue("postgres_url")) if request.param == "postgresql" else None
    opened = await Library.open(tmp_path / "restored", base=base, limits=limits, database_url=url)
    yield opened
    await opened.close()


async def fill(library: Library, write_adapter: Write) -> None:
    for seed in range(3):
        manifest = Manifest(
            name="sql", examples=["a", "ü\U0001f40d", f"{seed}"], card=Card(description="d", tags=["t"])
        )
        await library.register_folder(manifest, write_adapter(seed=seed), actor="me")
    waiting = Manifest(name="new", publish=Publication(to="canary", share=0.5))
    record = await library.register_folder(waiting, write_adapter(seed=9), offer=False)
    await library.move(record, Transition(AdapterState.VALIDATING), Change("me"))
    gone = await library.register_folder(Manifest(name="gone"), write_adapter(seed=8))
    await library.retire("gone")
    await library.purge(gone.expert_id)
    key, _ = new_key("app", scopes=["infer"], experts=["sql*"], limits=KeyLimits(requests_per_minute=7))
    await library.keys.add(key)


def shown(record: Any) -> tuple[Any, ...]:
    return (record.expert_id, record.card, record.examples, record.publish, record.created_at, record.is_purged)


async def test_round_trip(library: Library, restored: Library, write_adapter: Write, tmp_path: Path) -> None:
    await fill(library, write_adapter)
    extra = tmp_path / "policy.json"
    extra.write_text("{}")
    steps: list[tuple[int, int]] = []
    file = tmp_path / "backup.tar"
    num = await backup.export(
        library, file, {"policies/mine/policy.json": extra}, lambda done, total: steps.append((done, total))
    )
    assert (num, steps[0], steps[-1]) == (4, (0, 4), (4, 4))
    assert file.stat().st_mode & 0o077 == 0
    assert await backup.restore(restored, file, tmp_path / "home2", quiet) == 4
    assert (tmp_path / "home2/policies/mine/policy.json").read_text() == "{}"
    before, after = [await each.list(*AdapterState) for each in (library, restored)]
    assert [shown(record) for record in after] == [shown(record) for record in before]
    states = {record.expert_id: record.state for record in after}
    assert sorted(states.values()) == ["active", "registered", "retired", "retired", "retired"]
    assert await restored.find_damaged() == ()
    assert await restored.keys.list() == await library.keys.list()
    assert await restored.audit(limit=1000) == await library.audit(limit=1000)
    again = await restored.register_folder(Manifest(name="more"), write_adapter(seed=20))
    assert again.state is AdapterState.ACTIVE
    with pytest.raises(NotEmpty):
        await backup.restore(restored, file, tmp_path / "home2", quiet)


def rewritten(file: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]) -> Path:
    """A copy of a backup with other members."""
    with tarfile.open(file) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar.getmembers()]  # type: ignore[union-attr]
    change(members)
    target = file.with_name("changed.tar")
    with tarfile.open(target, "w") as tar:
        for member, content in members:
            member.size = len(content) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(content))
    return target


def index_with(**changes: Any) -> Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]:
    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        index = orjson.loads(members[0][1])
        for key, value in changes.items():
            if key in index:
                index[key] = value
            else:
                index["tables"]["adapters"][0][key] = value
        members[0] = (members[0][0], orjson.dumps(index))

    return change


def member_named(name: str, kind: bytes = tarfile.REGTYPE) -> Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]:
    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        hostile = tarfile.TarInfo(name)
        hostile.type, hostile.linkname = kind, "/etc/passwd"
        members.append((hostile, b"x" if kind == tarfile.REGTYPE else b""))

    return change


def flipped(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    member, content = members[2]
    members[2] = (member, content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    "change",
    [
        flipped,
        lambda members: members.pop(1),
        lambda members: members.pop(0),
        lambda members: members.reverse(),
        lambda members: members.__delitem__(slice(3, None)),
        index_with(format=2),
        index_with(tables={"adapters": 3}),
        index_with(contents=[]),
        index_with(unknown_column=1),
        index_with(version="00000000"),
        index_with(state="flying"),
        index_with(created_at="yesterday"),
        index_with(rank=None),
        index_with(name=None),
        member_named("../../escaped"),
        member_named("/escaped"),
        member_named("policies/x/../../../escaped"),
        member_named("policies/x/policy.json", tarfile.SYMTYPE),
        member_named("policies/x/policy.json", tarfile.LNKTYPE),
        member_named("policies/x/policy.json", tarfile.FIFOTYPE),
    ],
)
async def test_a_bad_backup_changes_nothing(
    library: Library,
    home: Path,
    base: BaseSpec,
    limits: AdapterLimits,
    write_adapter: Write,
    tmp_path: Path,
    change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None],
) -> None:
    await fill(library, write_adapter)
    await backup.export(library, tmp_path / "backup.tar", {}, quiet)
    empty = await Library.open(tmp_path / "restored", base=base, limits=limits)
    with pytest.raises((BadBackup, InvalidAdapter)):
        await backup.restore(empty, rewritten(tmp_path / "backup.tar", change), tmp_path / "home2", quiet)
    assert await empty.list(*AdapterState) == ()
    assert await empty.keys.list() == ()
    assert list(empty.storage.incoming.iterdir()) == []
    assert not list(tmp_path.glob("**/escaped"))
    await empty.close()


@pytest.mark.parametrize("content", [b"", b"nonsense" * 200])
async def test_what_is_no_backup(library: Library, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    for name in ("file", "nothing"):
        with pytest.raises(BadBackup):
            await backup.restore(library, tmp_path / name, tmp_path, quiet)
