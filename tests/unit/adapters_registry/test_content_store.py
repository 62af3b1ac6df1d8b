from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

import adapters_registry
from adapters_registry.checks.base_spec import BaseSpec
from adapters_registry.checks.validation import AdapterFacts, validate_adapter
from adapters_registry.content_store import AdapterStorage
from adapters_registry.disk import safe_files
from adapters_registry.errors import InvalidAdapter, StorageFull, StorageUnwritable
from adapters_registry.limits import AdapterLimits

Write = Callable[..., Path]


@pytest.fixture
def storage(home: Path) -> AdapterStorage:
    made = AdapterStorage(home / "adapters")
    made.prepare()
    return made


@pytest.fixture
def adapter(write_adapter: Write) -> Path:
    return write_adapter()


@pytest.fixture
def facts(adapter: Path, base: BaseSpec, limits: AdapterLimits) -> AdapterFacts:
    return validate_adapter(adapter, base, limits)


def leftovers(storage: AdapterStorage) -> list[str]:
    return [entry.name for entry in storage.incoming.iterdir()]


def test_put_keeps_exactly_two_files(storage: AdapterStorage, adapter: Path, facts: AdapterFacts) -> None:
    (adapter / "README.md").write_text("secret path")
    place = storage.put(adapter, facts)
    assert place == storage.path_of(facts.sha256)
    assert sorted(file.name for file in place.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert {file.stat().st_mode & 0o777 for file in place.iterdir()} == {0o444}
    assert (place / "adapter_config.json").read_bytes() == facts.config
    assert list(storage.iter_all()) == [facts.sha256]
    assert storage.is_whole(facts.sha256)
    assert leftovers(storage) == []


def test_what_is_kept_can_be_registered_again(
    storage: AdapterStorage, adapter: Path, facts: AdapterFacts, base: BaseSpec, limits: AdapterLimits
) -> None:
    assert validate_adapter(storage.put(adapter, facts), base, limits) == facts


def test_put_again_changes_nothing(storage: AdapterStorage, adapter: Path, facts: AdapterFacts) -> None:
    place = storage.put(adapter, facts)
    before = (place / "adapter_model.safetensors").stat().st_ino
    assert storage.put(adapter, facts) == place
    assert (place / "adapter_model.safetensors").stat().st_ino == before
    assert leftovers(storage) == []


def test_put_repairs_a_damaged_folder(storage: AdapterStorage, adapter: Path, facts: AdapterFacts) -> None:
    place = storage.put(adapter, facts)
    (place / "adapter_model.safetensors").chmod(0o644)
    (place / "adapter_model.safetensors").write_bytes(b"rot")
    assert not storage.is_whole(facts.sha256)
    storage.put(adapter, facts)
    assert storage.is_whole(facts.sha256)
    assert leftovers(storage) == []


def test_a_file_that_changed_after_validation_is_refused(
    storage: AdapterStorage, adapter: Path, facts: AdapterFacts
) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2] + b"\x01\x02")
    with pytest.raises(InvalidAdapter, match="changed"):
        storage.put(adapter, facts)
    assert list(storage.iter_all()) == []
    assert leftovers(storage) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_leaves_nothing(
    storage: AdapterStorage, adapter: Path, facts: AdapterFacts, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(source: BinaryIO, target: Path, max_bytes: int) -> str:
        target.write_bytes(source.read(10))
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(safe_files, "copy_hashed", fail)
    with pytest.raises(StorageFull) as caught:
        storage.put(adapter, facts)
    assert caught.value.needed_bytes is not None
    assert caught.value.free_bytes is not None
    assert list(storage.iter_all()) == []
    assert leftovers(storage) == []


@pytest.mark.parametrize("step", ["flush", "fsync_path", "write_new"])
def test_a_disk_that_fills_up_at_any_step(
    storage: AdapterStorage, adapter: Path, facts: AdapterFacts, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(safe_files, step, fail)
        with pytest.raises(StorageFull):
            storage.put(adapter, facts)
    assert all(storage.is_whole(sha256) for sha256 in storage.iter_all())
    assert leftovers(storage) == []
    storage.put(adapter, facts)
    assert storage.is_whole(facts.sha256)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_an_unwritable_store(storage: AdapterStorage, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(StorageUnwritable, match="cannot be written"):
        storage.prepare()


SMALL_DISK = """
import resource, sys
from pathlib import Path
from adapters_registry.checks.base_spec import BaseSpec
from adapters_registry.errors import StorageFull
from adapters_registry.limits import AdapterLimits
from adapters_registry.content_store import AdapterStorage
from adapters_registry.checks.validation import validate_adapter
folder, root = map(Path, sys.argv[1:])
facts = validate_adapter(folder, None, AdapterLimits())
storage = AdapterStorage(root)
storage.prepare()
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    storage.put(folder, facts)
except StorageFull:
    print("full", list(storage.iter_all()), list(storage.incoming.iterdir()))
"""


def test_a_real_write_that_fails(adapter: Path, home: Path) -> None:
    root = Path(adapters_registry.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", SMALL_DISK, str(adapter), str(home)],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "full [] []\n"


def test_remove(storage: AdapterStorage, adapter: Path, facts: AdapterFacts) -> None:
    storage.put(adapter, facts)
    assert storage.remove(facts.sha256)
    assert not storage.remove(facts.sha256)
    assert list(storage.iter_all()) == []
    assert leftovers(storage) == []


def test_old_leftovers_are_cleaned_and_young_ones_kept(storage: AdapterStorage) -> None:
    for name, age_s in (("old", 7200), ("young", 0)):
        (storage.incoming / name).mkdir()
        moment = (storage.incoming / name).stat().st_mtime - age_s
        os.utime(storage.incoming / name, (moment, moment))
    assert storage.clean_incoming(3600) == 1
    assert leftovers(storage) == ["young"]


@pytest.mark.parametrize("sha256", ["", "..", "../x", "A" * 64, "0" * 63, "0" * 64 + "/.."])
def test_paths_are_made_of_hashes_only(storage: AdapterStorage, sha256: str) -> None:
    with pytest.raises(ValueError, match="SHA-256"):
        storage.path_of(sha256)


def test_a_source_that_grows_while_it_is_copied(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(1000))
    with source.open("rb") as stream, pytest.raises(safe_files.TooLarge):
        safe_files.copy_hashed(stream, tmp_path / "target", 999)


def test_copies_never_follow_or_overwrite(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "outside")
    shutil.copy(tmp_path / "source", tmp_path / "taken")
    for name in ("link", "taken"):
        with (tmp_path / "source").open("rb") as stream, pytest.raises(FileExistsError):
            safe_files.copy_hashed(stream, tmp_path / name, 10)
    assert not (tmp_path / "outside").exists()


def test_other_errors_pass(tmp_path: Path) -> None:
    def interrupted() -> Any:
        with safe_files.storage_errors(tmp_path):
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        interrupted()
