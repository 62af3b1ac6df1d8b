from __future__ import annotations

import bz2
import dataclasses
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters_registry.archives.unpack import unpack_archive
from adapters_registry.errors import BadArchive
from adapters_registry.limits import AdapterLimits

FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights" * 100}
PACKERS = ["zip", "tar", "gz", "bz2", "xz"]
HOSTILE_NAMES = [
    "/etc/passwd",
    "../x",
    "a/../../x",
    "a/..",
    "..\\x",
    "a\\b",
    "C:\\x",
    "C:x",
    "a\nb",
    "a\u202eb",
    "a\u200bb",
    "\x7f",
    "a\u2028b",
    "x" * 300,
    "/".join("abcdefghij"),
]


def pack(kind: str, files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    raw = buffer.getvalue()
    return {
        "tar": lambda: raw,
        "gz": lambda: gzip.compress(raw),
        "bz2": lambda: bz2.compress(raw),
        "xz": lambda: lzma.compress(raw),
    }[kind]()


def tar_of(*infos: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for info in infos:
            tar.addfile(info, io.BytesIO(bytes(info.size)) if info.isreg() else None)
    return buffer.getvalue()


Unpack = Callable[[bytes], dict[str, bytes]]


@pytest.fixture
def unpack(tmp_path: Path, limits: AdapterLimits) -> Unpack:
    """Unpacks bytes; returns the files. After an error nothing may be left."""

    def run(raw: bytes, **changes: int) -> dict[str, bytes]:
        room = tmp_path / "room"
        room.mkdir(exist_ok=True)
        (tmp_path / "upload").write_bytes(raw)
        target = room / "target"
        try:
            unpack_archive(tmp_path / "upload", target, dataclasses.replace(limits, **changes))
        except BadArchive as error:
            assert error.problems
            assert all(problem.fix for problem in error.problems)
            assert list(room.iterdir()) == []
            raise
        found = {str(file.relative_to(target)): file.read_bytes() for file in target.rglob("*") if file.is_file()}
        assert list(room.iterdir()) == [target]
        for file in sorted(target.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        target.rmdir()
        return found

    return run


@pytest.mark.parametrize("kind", PACKERS)
def test_every_kind(unpack: Unpack, kind: str) -> None:
    assert unpack(pack(kind, FILES)) == FILES


@pytest.mark.parametrize("kind", PACKERS)
def test_one_top_folder_is_taken_off(unpack: Unpack, kind: str) -> None:
    assert unpack(pack(kind, {f"sql/{name}": content for name, content in FILES.items()})) == FILES


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_two_folders_stay(unpack: Unpack, kind: str) -> None:
    assert set(unpack(pack(kind, {"a/x": b"1", "b/y": b"2"}))) == {"a/x", "b/y"}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_litter_of_file_managers_is_skipped(unpack: Unpack, kind: str) -> None:
    litter = {"__MACOSX/sql/._adapter_config.json": b"x", "sql/.DS_Store": b"x", "sql/._a": b"x"}
    assert unpack(pack(kind, {f"sql/{name}": content for name, content in FILES.items()} | litter)) == FILES


def test_dot_prefixed_tars(unpack: Unpack) -> None:
    folder = tarfile.TarInfo("./")
    folder.type = tarfile.DIRTYPE
    assert set(unpack(tar_of(folder, tarfile.TarInfo("./a.txt")))) == {"a.txt"}


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names(unpack: Unpack, kind: str, name: str) -> None:
    with pytest.raises(BadArchive):
        unpack(pack(kind, {"good.txt": b"x", name: b"x"}))


def test_nameless_members(unpack: Unpack) -> None:
    with pytest.raises(BadArchive):
        unpack(pack("tar", {"good.txt": b"x", "": b"x"}))


def test_names_that_are_no_text(unpack: Unpack) -> None:
    with pytest.raises(BadArchive):
        unpack(pack("tar", {"a\udcffb": b"x"}))


@pytest.mark.parametrize(
    "pair",
    [("a.txt", "A.TXT"), ("\u00e9", "e\u0301"), ("ﬁ", "fi"), ("Ａ", "a"), ("ß", "SS"), ("a", "a/b"), ("A", "a/b")],
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_colliding_names(unpack: Unpack, kind: str, pair: tuple[str, str]) -> None:
    with pytest.raises(BadArchive, match=r"duplicate|below"):
        unpack(pack(kind, dict.fromkeys(pair, b"x")))


def test_duplicates(unpack: Unpack) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a", b"1")
        archive.writestr("a", b"2")
    with pytest.raises(BadArchive, match="duplicate"):
        unpack(buffer.getvalue())
    with pytest.raises(BadArchive, match="duplicate"):
        unpack(tar_of(tarfile.TarInfo("a"), tarfile.TarInfo("./a")))


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE],
)
def test_links_and_devices_in_tar(unpack: Unpack, kind: bytes) -> None:
    info = tarfile.TarInfo("adapter_config.json")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(BadArchive):
        unpack(tar_of(tarfile.TarInfo("other"), info))


@pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o010666, 0o140777])
def test_links_and_devices_in_zip(unpack: Unpack, mode: int) -> None:
    buffer = io.BytesIO()
    info = zipfile.ZipInfo("adapter_config.json")
    info.external_attr = mode << 16
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(BadArchive, match="link or a device"):
        unpack(buffer.getvalue())


def test_encrypted_zip(unpack: Unpack) -> None:
    raw = bytearray(pack("zip", {"a": b"x"}))
    directory = raw.rfind(b"PK\x01\x02")
    raw[directory + 8] |= 1
    with pytest.raises(BadArchive, match="encrypted"):
        unpack(bytes(raw))


def test_unusual_zip_compression(unpack: Unpack) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a", b"x" * 100)
    with pytest.raises(BadArchive, match="compression"):
        unpack(buffer.getvalue())


@pytest.mark.parametrize("kind", PACKERS)
def test_too_many_files(unpack: Unpack, kind: str) -> None:
    with pytest.raises(BadArchive, match="more than 20 files"):
        unpack(pack(kind, {str(i): b"" for i in range(40)}))


@pytest.mark.parametrize("kind", PACKERS)
def test_bombs_by_declared_size(unpack: Unpack, kind: str) -> None:
    with pytest.raises(BadArchive, match="unpacks to more"):
        unpack(pack(kind, {"a": bytes(400_000)}))
    with pytest.raises(BadArchive, match="unpacks to more"):
        unpack(pack(kind, {"a": bytes(200_000), "b": bytes(200_000)}))


def test_a_zip_that_lies_about_sizes(unpack: Unpack) -> None:
    raw = bytearray(pack("zip", {"a": bytes(400_000)}))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<L", raw, raw.find(signature) + offset, 10)
    with pytest.raises(BadArchive):
        unpack(bytes(raw))


def test_a_tar_that_claims_more_than_it_has(unpack: Unpack) -> None:
    info = tarfile.TarInfo("a")
    info.size = 100_000
    with pytest.raises(BadArchive):
        unpack(info.tobuf() + bytes(1024))


def test_a_tar_whose_extended_header_is_huge(unpack: Unpack) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 8 * 2**30
    with pytest.raises(BadArchive, match="headers"):
        unpack(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))


def test_a_tar_with_a_negative_size(unpack: Unpack) -> None:
    info = tarfile.TarInfo("a")
    info.size = -1024
    raw = info.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(BadArchive):
        unpack(raw + raw + bytes(1024))


def test_a_zip_with_a_huge_directory(unpack: Unpack) -> None:
    raw = bytearray(pack("zip", {"a": b""}))
    struct.pack_into("<L", raw, len(raw) - 22 + 12, 2**31)
    with pytest.raises(BadArchive, match="too many files"):
        unpack(bytes(raw))


def test_zip64(unpack: Unpack) -> None:
    raw = pack("zip", {"a": b""})
    with pytest.raises(BadArchive, match="zip64"):
        unpack(raw[:-22] + b"PK\x06\x07" + bytes(16) + raw[-22:])


def test_archives_inside_stay_packed(unpack: Unpack) -> None:
    inner = pack("zip", FILES)
    assert unpack(pack("zip", {"inner.zip": inner, "a": b""}))["inner.zip"] == inner


@pytest.mark.parametrize(
    "raw", [b"", b"hello", b"\x1f\x8b", b"BZh9", b"\xfd7zXZ\x00", b"PK\x03\x04", b"PK\x05\x06", bytes(2000)]
)
def test_what_is_no_archive(unpack: Unpack, raw: bytes) -> None:
    with pytest.raises(BadArchive):
        unpack(raw)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_but_no_tar(unpack: Unpack, compress: Callable[[bytes], bytes]) -> None:
    with pytest.raises(BadArchive, match="not a tar"):
        unpack(compress(b"hello" * 500))


@pytest.mark.parametrize("kind", PACKERS)
def test_empty_archives(unpack: Unpack, kind: str) -> None:
    with pytest.raises(BadArchive):
        unpack(pack(kind, {}))


@pytest.mark.parametrize("kind", PACKERS)
def test_cut_off_archives(unpack: Unpack, kind: str) -> None:
    raw = pack(kind, {"a": bytes(range(256)) * 100, "b": b"x" * 3000})
    for part in (0.1, 0.5, 0.9):
        with pytest.raises(BadArchive):
            unpack(raw[: int(len(raw) * part)])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(data=st.data(), kind=st.sampled_from(PACKERS))
def test_damaged_archives_are_refused_or_unpacked(unpack: Unpack, data: st.DataObject, kind: str) -> None:
    raw = bytearray(pack(kind, FILES))
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        unpack(bytes(raw))
    except BadArchive:
        pass
