"""Unpack an uploaded archive that may be hostile: zip, tar, and tar under gzip, bzip2 or xz.

The first bytes decide the format, not the name. All members are listed and checked before one is written. Bytes are
counted while they are written, because sizes in an archive are only claims. The result is a new folder of plain files
and folders; it is removed if anything is wrong. Archives inside the archive are not unpacked; validation refuses them.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, cast

from adapters_registry.archives import member_names
from adapters_registry.archives.bounded_readers import BoundedReader, LimitedXz, check_zip_directory
from adapters_registry.archives.member_names import Member
from adapters_registry.disk import safe_files
from adapters_registry.errors import BadArchive, Problem, quote
from adapters_registry.limits import AdapterLimits

_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    gzip.BadGzipFile,
)
_WHOLE_FIX = "Pack it again and send the complete file."


def unpack_archive(archive: Path, target: Path, limits: AdapterLimits) -> None:
    """Unpack into the new folder `target`. Raises BadArchive, StorageFull, StorageUnwritable; then `target` is gone."""
    with safe_files.storage_errors(target.parent):
        target.mkdir()
        try:
            with archive.open("rb") as stream:
                _unpack(stream, target, limits)
        except BadArchive:
            shutil.rmtree(target, ignore_errors=True)
            raise
        except _DAMAGED as error:
            shutil.rmtree(target, ignore_errors=True)
            raise _bad("archive", f"is damaged ({type(error).__name__})", _WHOLE_FIX) from None
        except BaseException as error:
            shutil.rmtree(target, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in (None, errno.EINVAL):  # bz2 data, zip offsets
                raise _bad("archive", "is damaged", _WHOLE_FIX) from None
            raise


def _unpack(stream: BinaryIO, target: Path, limits: AdapterLimits) -> None:
    magic = stream.read(512)
    stream.seek(0)
    if magic.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        _unpack_zip(stream, target, limits)
    elif magic.startswith(b"\x1f\x8b"):
        _unpack_compressed(cast(BinaryIO, gzip.GzipFile(fileobj=stream)), target, limits)
    elif magic.startswith(b"BZh"):
        _unpack_compressed(cast(BinaryIO, bz2.BZ2File(stream)), target, limits)
    elif magic.startswith(b"\xfd7zXZ\x00"):
        _unpack_compressed(cast(BinaryIO, LimitedXz(stream)), target, limits)
    elif magic[257:262] == b"ustar":
        _unpack_tar(stream, target, limits)
    else:
        raise _bad("archive", "is neither zip nor tar (plain, gzip, bzip2, xz)", "Send one of these.")


def _unpack_zip(stream: BinaryIO, target: Path, limits: AdapterLimits) -> None:
    check_zip_directory(stream, limits.max_archive_files)
    with zipfile.ZipFile(stream) as archive:
        infos = [info for info in archive.infolist() if not member_names.is_litter(info.filename)]
        problems = [problem for info in infos if (problem := _zip_problem(info)) is not None]
        members = [Member(info.filename, info.is_dir(), info.file_size) for info in infos]
        paths = _plan(members, limits, problems)
        budget = limits.max_unpacked_bytes
        for info, path in zip(infos, paths, strict=True):
            if info.is_dir():
                continue
            with archive.open(info) as content:
                budget -= _write(content, target, path, budget)


def _zip_problem(info: zipfile.ZipInfo) -> Problem | None:
    kind = (info.external_attr >> 16) & 0o170000
    if info.flag_bits & 0x1:
        return Problem(quote(info.filename), "is encrypted", "Pack it without a password.")
    if kind not in (0, 0o100000, 0o040000):
        return Problem(quote(info.filename), "is a link or a device", "Pack the files themselves.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return Problem(quote(info.filename), "uses an unusual compression", "Pack it with 'deflate'.")
    if "\0" in info.orig_filename or info.orig_filename != info.filename:
        return Problem(quote(info.orig_filename), "has a name that readers interpret differently", "Rename it.")
    return None


def _unpack_compressed(stream: BinaryIO, target: Path, limits: AdapterLimits) -> None:
    """Decompress to an anonymous file first, so that the tar's claimed sizes can be checked against a bounded file."""
    with stream, tempfile.TemporaryFile(dir=target.parent) as plain:
        left = limits.max_unpacked_bytes + 1024 * limits.max_archive_files
        while piece := stream.read(safe_files.CHUNK_BYTES):
            left -= len(piece)
            if left < 0:
                raise _too_large(limits)
            plain.write(piece)
        plain.seek(0)
        if plain.read(512)[257:262] != b"ustar":
            raise _bad("archive", "is compressed, but not a tar", "Send a zip, or a tar with the adapter's files.")
        plain.seek(0)
        _unpack_tar(cast(BinaryIO, plain), target, limits)


def _unpack_tar(stream: BinaryIO, target: Path, limits: AdapterLimits) -> None:
    infos: list[tarfile.TarInfo] = []
    problems: list[Problem] = []
    with _tar(stream, limits) as archive:
        for info in archive:
            if len(infos) > limits.max_archive_files:
                raise _too_many(limits)
            if member_names.is_litter(info.name) or (info.isdir() and info.name in (".", "./")):
                continue
            if not (info.isreg() or info.isdir()) or info.issparse():
                problems.append(Problem(quote(info.name), "is a link, a device or sparse", "Pack plain files."))
            infos.append(info)
    paths = _plan([Member(info.name, info.isdir(), info.size) for info in infos], limits, problems)
    budget = limits.max_unpacked_bytes
    for info, path in zip(infos, paths, strict=True):
        if info.isreg():
            stream.seek(info.offset_data)
            budget -= _write(stream, target, path, budget, info.size)


@contextmanager
def _tar(stream: BinaryIO, limits: AdapterLimits) -> Iterator[tarfile.TarFile]:
    reader = BoundedReader(stream, max_reads=64 * (limits.max_archive_files + 4))
    with tarfile.open(fileobj=cast(BinaryIO, reader), mode="r:", errorlevel=2) as archive:
        yield archive


def _plan(members: list[Member], limits: AdapterLimits, problems: list[Problem]) -> list[PurePosixPath]:
    """Return the path of every member. Raises BadArchive with `problems` and all further ones."""
    if len(members) > limits.max_archive_files:
        raise _too_many(limits)
    if sum(member.size_bytes for member in members) > limits.max_unpacked_bytes:
        raise _too_large(limits)
    paths, more = member_names.plan_paths(members)
    if problems or more:
        raise BadArchive([*problems, *more])
    if not any(not member.is_folder for member in members):
        raise _bad("archive", "holds no files", "Pack adapter_config.json and adapter_model.safetensors.")
    return paths


def _write(source: IO[bytes], target: Path, path: PurePosixPath, budget: int, size: int | None = None) -> int:
    """Write one member (`size` bytes, or all of it), at most `budget` bytes; returns the number written."""
    place = target / path
    place.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with place.open("xb") as sink:
        while size is None or written < size:
            wanted = safe_files.CHUNK_BYTES if size is None else min(safe_files.CHUNK_BYTES, size - written)
            piece = source.read(wanted)
            if not piece:
                break
            written += len(piece)
            if written > budget:
                raise _bad(quote(path), "unpacks to more than the allowed size", "Send only the adapter.")
            sink.write(piece)
    if size is not None and written < size:
        raise _bad(quote(path), "is cut off", _WHOLE_FIX)
    return written


def _bad(where: str, what: str, fix: str) -> BadArchive:
    return BadArchive([Problem(where, what, fix)])


def _too_many(limits: AdapterLimits) -> BadArchive:
    return _bad("archive", f"has more than {limits.max_archive_files} files", "Send only the adapter's files.")


def _too_large(limits: AdapterLimits) -> BadArchive:
    what = f"unpacks to more than {limits.max_unpacked_bytes} bytes"
    return _bad("archive", what, "Send only the adapter's files, or raise the limit.")
