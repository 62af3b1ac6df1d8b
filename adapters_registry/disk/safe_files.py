"""Careful file handling: open untrusted folders without following links, copy with a hash, make writes durable.

Every function blocks; call them in a worker thread.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from adapters_registry.errors import StorageFull, StorageUnwritable

CHUNK_BYTES = 1024 * 1024

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_UNWRITABLE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR})


class NotRegular(Exception):
    """A path is not a real folder or a regular file, as required. The text says what it is."""


class TooLarge(Exception):
    """A file has more bytes than the caller allows."""


class SourceFolder:
    """An untrusted folder, held open so that it cannot be swapped while it is read.

    Only regular files directly inside can be opened: no links, devices or pipes. Raises NotRegular or OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._descriptor = os.open(path, flags)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                what = "a link" if path.is_symlink() else "not a folder"
                raise NotRegular(f"{path} is {what}") from None
            raise

    def entries(self, limit: int) -> list[tuple[str, bool]]:
        """Return (name, is a folder) of at most `limit` + 1 entries, sorted."""
        found: list[tuple[str, bool]] = []
        with os.scandir(self._descriptor) as scan:
            for entry in scan:
                found.append((entry.name, entry.is_dir(follow_symlinks=False)))
                if len(found) > limit:
                    break
        return sorted(found)

    def open(self, name: str) -> BinaryIO:
        """Open one regular file for reading."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # NONBLOCK: opening a pipe must not hang
        try:
            descriptor = os.open(name, flags, dir_fd=self._descriptor)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise NotRegular("it is a link") from None
            if error.errno == errno.ENXIO:
                raise NotRegular("it is a socket, a pipe or a device") from None
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise NotRegular("it is not a regular file")
        return os.fdopen(descriptor, "rb")

    def close(self) -> None:
        """Close the folder."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def copy_hashed(source: BinaryIO, target: Path, max_bytes: int) -> str:
    """Copy `source` into the new file `target`, flush it to disk, and return the SHA-256 of exactly what was written.

    Raises TooLarge beyond `max_bytes` (a source may grow while it is read), and OSError.
    """
    digest = hashlib.sha256()
    written = 0
    with _create(target) as sink:
        while chunk := source.read(CHUNK_BYTES):
            written += len(chunk)
            if written > max_bytes:
                raise TooLarge(f"has more than the {max_bytes} bytes allowed")
            digest.update(chunk)
            sink.write(chunk)
        flush(sink)
    return digest.hexdigest()


def write_new(target: Path, content: bytes) -> None:
    """Write `content` into the new file `target` and flush it to disk."""
    with _create(target) as sink:
        sink.write(content)
        flush(sink)


def flush(sink: BinaryIO) -> None:
    """Flush everything written to `sink` to disk."""
    sink.flush()
    os.fsync(sink.fileno())


def digest(stream: BinaryIO, read: Callable[[int], None] = lambda num_bytes: None) -> str:
    """Return the SHA-256, in hex, of the rest of `stream`; `read` is called with the number of bytes of each read."""
    result = hashlib.sha256()
    while chunk := stream.read(CHUNK_BYTES):
        result.update(chunk)
        read(len(chunk))
    return result.hexdigest()


def replace_file(path: Path, content: bytes) -> None:
    """Write a file beside `path` and rename it, so that a crash leaves either the old file or the new one.

    The new file is durable when this returns.
    """
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with temporary.open("wb") as sink:
            sink.write(content)
            flush(sink)
        temporary.replace(path)
        fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def publish_folder(folder: Path, target: Path) -> None:
    """Flush everything in `folder` and rename it to `target`, which must not exist; atomic."""
    for path in (*folder.rglob("*"), folder):
        fsync_path(path)
    folder.rename(target)
    fsync_path(target.parent)


def fsync_path(path: Path) -> None:
    """Make a file's content durable, or a folder's creations, renames and removals."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(file: Path, read: Callable[[int], None] = lambda num_bytes: None) -> str:
    """Return the SHA-256 of a trusted file, in hex; `read` as for `digest`."""
    with file.open("rb") as stream:
        return digest(stream, read)


@contextmanager
def storage_errors(path: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """Translate "no space" and "not writable" from the file system to registry errors; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(path, needed_bytes, _free_bytes(path)) from error
        if error.errno in _UNWRITABLE:
            raise StorageUnwritable(path, error.strerror or str(error)) from error
        raise


def _free_bytes(path: Path) -> int | None:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def _create(target: Path) -> BinaryIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(target, flags, 0o600), "wb")
