"""Files that are made durable, and hashes of them."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import pytest

from adapters_registry.disk.safe_files import CHUNK_BYTES, digest, publish_folder, replace_file, sha256_of


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is flushed and renamed, in order, by name."""
    done: list[tuple[str, str]] = []
    fsync, rename, replace = os.fsync, Path.rename, Path.replace

    def flushed(descriptor: int) -> None:
        done.append(("flush", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", flushed)
    for name, change in (("rename", rename), ("replace", replace)):

        def moved(path: Path, target: Path, change: object = change) -> Path:
            done.append(("move", target.name))
            return change(path, target)  # type: ignore[operator, no-any-return]

        monkeypatch.setattr(Path, name, moved)
    return done


def test_a_file_is_replaced_after_it_is_flushed_and_its_folder_after_that(
    tmp_path: Path, steps: list[tuple[str, str]]
) -> None:
    file = tmp_path / "table"
    for content in (b"one", b"two"):
        replace_file(file, content)
        assert file.read_bytes() == content
    assert steps == 2 * [("flush", f".table-{os.getpid()}"), ("move", "table"), ("flush", tmp_path.name)]
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_flushed_stays_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "table"
    replace_file(file, b"one")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(file, b"two")
    assert (file.read_bytes(), list(tmp_path.iterdir())) == (b"one", [file])


def test_a_folder_is_flushed_whole_before_it_gets_its_name(tmp_path: Path, steps: list[tuple[str, str]]) -> None:
    made = tmp_path / ".made"
    (made / "inner").mkdir(parents=True)
    (made / "inner" / "deep").write_bytes(b"1")
    (made / "top").write_bytes(b"2")
    publish_folder(made, tmp_path / "target")
    before, after = steps[: steps.index(("move", "target"))], steps[steps.index(("move", "target")) + 1 :]
    assert {name for _, name in before} == {".made", "inner", "deep", "top"}
    assert after == [("flush", tmp_path.name)]
    assert (tmp_path / "target" / "inner" / "deep").read_bytes() == b"1"
    with pytest.raises(OSError, match="not empty"):
        publish_folder(tmp_path / "target" / "inner", tmp_path / "target")


def test_a_hash_tells_how_far_it_has_read(tmp_path: Path) -> None:
    content = os.urandom(CHUNK_BYTES + 5)
    file = tmp_path / "weights"
    file.write_bytes(content)
    read: list[int] = []
    wanted = hashlib.sha256(content).hexdigest()
    assert sha256_of(file, read.append) == sha256_of(file) == digest(io.BytesIO(content)) == wanted
    assert read == [CHUNK_BYTES, 5]
