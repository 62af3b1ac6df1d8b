from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters_registry.checks.base_spec import BaseSpec
from adapters_registry.checks.validation import AdapterFacts
from adapters_registry.disk import safe_files
from adapters_registry.errors import (
    AdapterNotFound,
    BadArchive,
    BadManifest,
    InvalidAdapter,
    NameTaken,
    NotRetired,
    RegistryError,
    StorageFull,
    StorageUnwritable,
)
from adapters_registry.library import Library
from adapters_registry.limits import AdapterLimits
from adapters_registry.records import Card, Manifest
from adapters_registry.states import AdapterState

Write = Callable[..., Path]


def manifest(name: str = "sql", *examples: str, description: str = "") -> Manifest:
    return Manifest(name=name, card=Card(description=description), examples=list(examples))


async def test_a_registration_is_whole(library: Library, write_adapter: Write) -> None:
    record = await library.register_folder(manifest("sql", "a", "b", description="d"), write_adapter(), actor="me")
    assert record.expert_id == f"sql@{record.sha256[:8]}"
    assert (record.state, record.rank, record.examples, record.card.description) == ("active", 4, ("a", "b"), "d")
    assert record.created_at.tzinfo is not None
    assert await library.get("sql") == record
    assert await library.get(record.expert_id) == record
    assert await library.list() == (record,)
    assert await library.find_damaged() == ()
    config = json.loads((library.folder_of(record) / "adapter_config.json").read_text())
    assert config["r"] == 4


async def test_it_survives_a_restart(home: Path, base: BaseSpec, limits: AdapterLimits, write_adapter: Write) -> None:
    first = await Library.open(home, base=base, limits=limits)
    record = await first.register_folder(manifest(), write_adapter())
    revision = await first.revision()
    await first.close()
    second = await Library.open(home, base=base, limits=limits)
    assert await second.get("sql") == record
    assert await second.revision() == revision
    await second.close()


async def test_the_same_content_again_changes_the_description_only(library: Library, write_adapter: Write) -> None:
    first = await library.register_folder(manifest("sql", "a"), write_adapter())
    revision = await library.revision()
    assert await library.register_folder(manifest("sql", "a"), write_adapter()) == first
    assert await library.revision() == revision
    second = await library.register_folder(manifest("sql", "b", description="d"), write_adapter())
    assert (second.expert_id, second.examples, second.card.description) == (first.expert_id, ("b",), "d")
    assert second.created_at == first.created_at
    assert await library.revision() > revision
    assert len(await library.list()) == 1


async def test_new_content_is_a_new_version(library: Library, write_adapter: Write) -> None:
    old = await library.register_folder(manifest(), write_adapter())
    new = await library.register_folder(manifest(), write_adapter(seed=1))
    assert await library.get("sql") == new
    assert await library.list() == (new,)
    with pytest.raises(AdapterNotFound):
        await library.get(old.expert_id)
    assert (await library.find(old.expert_id)).state is AdapterState.DRAINING
    back = await library.register_folder(manifest(), write_adapter())
    assert back.expert_id == old.expert_id
    assert await library.list() == (back,)


async def test_two_names_may_share_content(library: Library, write_adapter: Write) -> None:
    one = await library.register_folder(manifest("one"), write_adapter())
    two = await library.register_folder(manifest("two"), write_adapter())
    assert one.sha256 == two.sha256
    await library.retire("one")
    await library.purge("one")
    assert await library.find_damaged() == ()
    await library.retire("two")
    await library.purge(two.expert_id)
    assert list(library.storage.iter_all()) == []
    again = await library.register_folder(manifest("one"), write_adapter())
    assert again.expert_id == one.expert_id
    assert await library.find_damaged() == ()


async def test_colliding_versions_are_refused(
    library: Library, write_adapter: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = await library.register_folder(manifest("one"), write_adapter())
    facts: dict[str, Any] = {}

    def forged(*_: object, **__: object) -> AdapterFacts:
        sha256 = record.version + "0" * 56
        return AdapterFacts(4, 8.0, ("q_proj",), 10, sha256, "", b"{}", "0" * 64, **facts)

    monkeypatch.setattr("adapters_registry.library.validate_adapter", forged)
    for name in ("one", "two"):
        with pytest.raises(NameTaken, match=record.version):
            await library.register_folder(manifest(name), write_adapter(seed=1))
    assert await library.list() == (record,)


async def test_unknown_names_get_the_nearest(library: Library, write_adapter: Write) -> None:
    await library.register_folder(manifest("tweet_irony"), write_adapter())
    with pytest.raises(AdapterNotFound) as caught:
        await library.get("tweet_iron")
    assert caught.value.nearest == ("tweet_irony",)
    for reference in ("", "@", "tweet_irony@00000000", "x" * 10_000, "a\nb"):
        with pytest.raises(AdapterNotFound):
            await library.get(reference)


async def test_retire_and_purge(library: Library, write_adapter: Write) -> None:
    record = await library.register_folder(manifest(), write_adapter())
    with pytest.raises(NotRetired):
        await library.purge(record.expert_id)
    retired = await library.retire("sql", actor="me")
    assert retired.state == AdapterState.RETIRED
    assert library.folder_of(record).is_dir()
    with pytest.raises(AdapterNotFound):
        await library.retire("sql")
    await library.purge(record.expert_id)
    await library.purge(record.expert_id)
    assert not library.folder_of(record).exists()
    with pytest.raises(AdapterNotFound):
        await library.purge("sql@00000000")
    with pytest.raises(AdapterNotFound):
        await library.purge("other")


async def test_examples_can_be_replaced(library: Library, write_adapter: Write) -> None:
    record = await library.register_folder(manifest("sql", "a"), write_adapter())
    revision = await library.revision()
    changed = await library.set_examples("sql", ["x", "y"], actor="me")
    assert changed.examples == ("x", "y")
    assert await library.revision() == revision + 1
    await library.set_examples(record.expert_id, ["x", "y"])
    assert await library.revision() == revision + 1
    with pytest.raises(BadManifest):
        await library.set_examples("sql", ["x", ""])
    with pytest.raises(BadManifest):
        await library.set_examples("sql", "text")
    with pytest.raises(AdapterNotFound):
        await library.set_examples("other", ["x"])
    assert (await library.get("sql")).examples == ("x", "y")


# -- refusals ------------------------------------------------------------------------------------------------


async def test_a_refused_adapter_leaves_nothing(library: Library, write_adapter: Write) -> None:
    revision = await library.revision()
    folder = write_adapter(use_dora=True)
    (folder / "optimizer.pt").write_text("x")
    with pytest.raises(InvalidAdapter) as caught:
        await library.register_folder(manifest(), folder)
    assert {"DoRA" in problem.what for problem in caught.value.problems} == {True, False}
    assert await library.list() == ()
    assert await library.revision() == revision
    assert list(library.storage.iter_all()) == []
    assert list(library.storage.incoming.iterdir()) == []


@pytest.mark.parametrize("path", ["relative", "/nonexistent/adapter", "/etc/passwd"])
async def test_folders_that_are_refused(library: Library, path: str) -> None:
    with pytest.raises(InvalidAdapter, match=r"source\.path"):
        await library.register_folder(manifest(), Path(path))


async def test_links_are_not_followed(library: Library, write_adapter: Write, tmp_path: Path) -> None:
    folder = write_adapter()
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(InvalidAdapter, match="link"):
        await library.register_folder(manifest(), tmp_path / "link")
    (folder / "adapter_config.json").rename(tmp_path / "config")
    (folder / "adapter_config.json").symlink_to(tmp_path / "config")
    with pytest.raises(InvalidAdapter, match="link"):
        await library.register_folder(manifest(), folder)


async def test_oversized_files_are_not_copied(home: Path, base: BaseSpec, write_adapter: Write) -> None:
    library = await Library.open(home, base=base, limits=AdapterLimits(max_adapter_bytes=100))
    with pytest.raises(InvalidAdapter, match="more than the 100"):
        await library.register_folder(manifest(), write_adapter())
    await library.close()


# -- archives ------------------------------------------------------------------------------------------------


async def test_archives_and_loose_files(library: Library, write_adapter: Write, tmp_path: Path) -> None:
    folder = write_adapter()
    with tarfile.open(tmp_path / "upload", "w:gz") as tar:
        tar.add(folder, arcname="sql")
    packed = await library.register_archive(manifest("packed"), tmp_path / "upload")
    loose = await library.register_archive(manifest("loose"), folder)
    assert packed.sha256 == loose.sha256
    assert list(library.storage.incoming.iterdir()) == []


async def test_a_bad_archive_leaves_nothing(library: Library, tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(b"nonsense")
    with pytest.raises(BadArchive):
        await library.register_archive(manifest(), tmp_path / "upload")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("adapter_config.json"))
    (tmp_path / "upload").write_bytes(buffer.getvalue())
    with pytest.raises(InvalidAdapter):
        await library.register_archive(manifest(), tmp_path / "upload")
    assert list(library.storage.incoming.iterdir()) == []


# -- many at once --------------------------------------------------------------------------------------------


async def test_twenty_registrations_of_one_content(library: Library, write_adapter: Write) -> None:
    folder = write_adapter()
    records = await asyncio.gather(*(library.register_folder(manifest(), folder) for _ in range(20)))
    assert len({record.expert_id for record in records}) == 1
    assert len(await library.list()) == 1


async def test_twenty_contents_for_one_name(
    home: Path, base: BaseSpec, limits: AdapterLimits, write_adapter: Write
) -> None:
    libraries = [await Library.open(home, base=base, limits=limits) for _ in range(2)]  # as two gateways
    folders = [write_adapter(seed=seed) for seed in range(20)]
    records = await asyncio.gather(
        *(libraries[i % 2].register_folder(manifest(), folder) for i, folder in enumerate(folders))
    )
    versions = {record.version for record in records}
    assert len(versions) == 20
    (active,) = await libraries[0].list()
    assert active.version in versions
    assert await libraries[1].list() == (active,)
    assert len(list(libraries[0].storage.iter_all())) == 20
    for library in libraries:
        await library.close()


async def test_registering_and_purging_at_once(library: Library, write_adapter: Write) -> None:
    folder = write_adapter()

    async def come_and_go(name: str) -> None:
        for _ in range(4):
            await library.register_folder(manifest(name), folder)
            await library.retire(name)
            await library.purge(name)
        await library.register_folder(manifest(name), folder)

    await asyncio.gather(*(come_and_go(name) for name in ("a", "b", "c")), library.clean_orphans(0))
    assert len(await library.list()) == 3
    assert await library.find_damaged() == ()


async def test_a_cancelled_registration_blocks_nobody(library: Library, write_adapter: Write) -> None:
    folder = write_adapter()
    for delay_s in (0, 0.001, 0.005, 0.01, 0.02, 0.04):
        task = asyncio.create_task(library.register_folder(manifest(), folder))
        await asyncio.wait([task], timeout=delay_s)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    record = await asyncio.wait_for(library.register_folder(manifest(), folder), 10)
    assert await library.list() == (record,)
    await asyncio.wait_for(library.clean_orphans(0), 10)
    assert await library.find_damaged() == ()


# -- trouble below -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected"),
    [(errno.ENOSPC, StorageFull), (errno.EROFS, StorageUnwritable), (errno.EACCES, StorageUnwritable)],
)
async def test_a_store_that_cannot_be_written(
    library: Library, write_adapter: Write, monkeypatch: pytest.MonkeyPatch, code: int, expected: type[RegistryError]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(safe_files, "flush", fail)
        with pytest.raises(expected):
            await library.register_folder(manifest(), write_adapter())
    assert await library.list() == ()
    assert list(library.storage.incoming.iterdir()) == []
    await library.register_folder(manifest(), write_adapter())
    assert await library.find_damaged() == ()


async def test_orphans_are_removed_when_they_are_old(library: Library, write_adapter: Write) -> None:
    kept = await library.register_folder(manifest("kept"), write_adapter())
    gone = await library.register_folder(manifest("gone"), write_adapter(seed=1))
    orphan = library.storage.path_of("0" * 64)
    os.rename(library.folder_of(gone), orphan)
    assert await library.clean_orphans(3600) == 0
    assert orphan.exists()
    assert await library.clean_orphans(0) == 1
    assert list(library.storage.iter_all()) == [kept.sha256]
    assert [record.name for record in await library.find_damaged()] == ["gone"]


async def test_a_home_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "adapters").write_text("x")
    for name in ("file", "home"):
        with pytest.raises(StorageUnwritable):
            await Library.open(tmp_path / name)
