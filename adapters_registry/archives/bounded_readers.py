"""Bounds around the standard library's archive readers, which trust the sizes that an archive claims."""

from __future__ import annotations

import io
import lzma
import struct
from typing import BinaryIO

from adapters_registry.errors import BadArchive, Problem

_MAX_READ_BYTES = 1024 * 1024
_XZ_MEMORY_BYTES = 256 * 1024 * 1024

_END_BYTES = 22
_MAX_COMMENT_BYTES = 65535
_ZIP64_LOCATOR_BYTES = 20
_MAX_ENTRY_BYTES = 1024  # one entry of a zip's directory: 46 bytes, the name, extra fields


class BoundedReader:
    """A file object for `tarfile`'s header parsing that allows few, small reads and no negative positions.

    `tarfile` reads extended headers of any claimed size into memory, and damaged offsets have made it loop forever.
    """

    def __init__(self, stream: BinaryIO, max_reads: int) -> None:
        self._stream = stream
        self._reads_left = max_reads

    def read(self, size: int = -1) -> bytes:
        """Read a small piece."""
        self._reads_left -= 1
        if self._reads_left < 0 or not 0 <= size <= _MAX_READ_BYTES:
            raise BadArchive([Problem("archive", "has oversized or endless headers", "Pack it again with plain tar.")])
        return self._stream.read(size)

    def seek(self, position: int, whence: int = 0) -> int:
        """Seek to an absolute position."""
        if whence != 0 or position < 0:
            raise BadArchive([Problem("archive", "has impossible offsets", "Pack it again with plain tar.")])
        return self._stream.seek(position)

    def tell(self) -> int:
        """Return the current position."""
        return self._stream.tell()


class LimitedXz(io.RawIOBase):
    """An xz decompressor with bounded memory; an xz header may demand gigabytes of dictionary."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decompressor = self._new()

    def _new(self) -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill `buffer` with decompressed bytes; 0 at the end."""
        while True:
            if self._decompressor.eof:
                rest = self._decompressor.unused_data.lstrip(b"\0") or self._stream.read(_MAX_READ_BYTES).lstrip(b"\0")
                if not rest:
                    return 0
                self._decompressor = self._new()
                piece = self._decompressor.decompress(rest, len(buffer))
            else:
                raw = self._stream.read(64 * 1024) if self._decompressor.needs_input else b""
                if self._decompressor.needs_input and not raw:
                    raise EOFError("the xz stream is truncated")
                piece = self._decompressor.decompress(raw, len(buffer))
            if piece:
                buffer[: len(piece)] = piece
                return len(piece)


def check_zip_directory(stream: BinaryIO, max_entries: int) -> None:
    """Check the size of a zip's central directory before `zipfile` reads all of it; then seek to the start."""
    stream.seek(0, io.SEEK_END)
    end = stream.tell()
    tail_start = max(0, end - _END_BYTES - _MAX_COMMENT_BYTES - _ZIP64_LOCATOR_BYTES)
    stream.seek(tail_start)
    tail = stream.read()
    stream.seek(0)
    place = len(tail) - _END_BYTES if tail[-_END_BYTES:].startswith(b"PK\x05\x06") else tail.rfind(b"PK\x05\x06")
    if place < 0 or len(tail) - place < _END_BYTES:
        raise BadArchive([Problem("archive", "is truncated: a zip ends with its directory", "Send the complete file.")])
    directory_bytes: int = struct.unpack_from("<L", tail, place + 12)[0]
    locator = place - _ZIP64_LOCATOR_BYTES
    if locator >= 0 and tail[locator : locator + 4] == b"PK\x06\x07":
        raise BadArchive([Problem("archive", "is in the zip64 format", "An adapter fits into an ordinary zip.")])
    if directory_bytes > max_entries * _MAX_ENTRY_BYTES:
        raise BadArchive([Problem("archive", "has too many files", "Send only the adapter's files.")])
