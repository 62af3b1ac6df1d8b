"""A file that is being fetched: what of it is here, and which version of the original that is.

Beside the bytes (``NAME.part``) stands a note (``NAME.json``) of the original's version as the server told it. A later
attempt, also by another process, goes on behind the last byte if the server still has that version. Writes block and
belong in a thread.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from adapters_registry.disk import safe_files
from adapters_registry.errors import StorageFull


@dataclass(frozen=True, slots=True)
class Version:
    """The original as the server described it.

    Attributes:
        url: Where it is; for the hub with the commit.
        etag: Its entity tag; empty if the server gives none, or only a weak one.
        modified: Its time of change, as the server writes it.
        total: Its size in bytes; None if it is not known before the end.
    """

    url: str
    etag: str = ""
    modified: str = ""
    total: int | None = None

    @property
    def can_be_told(self) -> bool:
        """Whether another version would be recognised."""
        return bool(self.etag or self.modified)

    def is_same(self, other: Version) -> bool:
        """Whether both describe one version; by tag, or by time and size where there is no tag."""
        if self.url != other.url or (None not in (self.total, other.total) and self.total != other.total):
            return False
        return self.etag == other.etag if self.etag or other.etag else self.modified == other.modified


class PartialFile:
    """The part of one file that is here. `max_bytes` is for whoever fills it.

    Args:
        folder: Where the two files are kept; made if it is missing.
        name: The file's name.
        max_bytes: The most that the file may have.
    """

    def __init__(self, folder: Path, name: str, max_bytes: int) -> None:
        self.name = name
        self.max_bytes = max_bytes
        self.path = folder / f"{name}.part"
        self._note = folder / f"{name}.json"

    def known(self, url: str) -> tuple[Version | None, int]:
        """The version that is here in part, and how many bytes of it; (None, 0) if there is nothing to go on with."""
        try:
            version = Version(**orjson.loads(self._note.read_bytes()))
            size = self.path.stat().st_size
            fits = size <= (self.max_bytes if version.total is None else min(version.total, self.max_bytes))
        except (OSError, ValueError, TypeError):
            return None, 0
        return (version, size) if fits and version.url == url and version.can_be_told else (None, 0)

    def begin(self, version: Version) -> None:
        """Start from nothing. Raises StorageFull (also if its copy in the library would not fit), StorageUnwritable."""
        with safe_files.storage_errors(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            needed, free = 2 * (version.total or 0), shutil.disk_usage(self.path.parent).free
            if needed > free:  # said now, and not when nothing else in the home folder can be written either
                raise StorageFull(self.path.parent, needed, free)
            self._note.unlink(missing_ok=True)  # first, so that old bytes never go under a new note
            self.path.write_bytes(b"")
            safe_files.replace_file(self._note, orjson.dumps(asdict(version)))

    def append(self, piece: bytes) -> None:
        """Add bytes at the end. Raises StorageFull, StorageUnwritable."""
        with safe_files.storage_errors(self.path.parent, len(piece)), self.path.open("ab") as sink:
            sink.write(piece)

    def finish(self, version: Version) -> int:
        """Note that it is whole; returns its size."""
        size = self.path.stat().st_size
        with safe_files.storage_errors(self.path.parent), self.path.open("rb+") as sink:
            safe_files.flush(sink)
            complete = asdict(version) | {"total": size}
            safe_files.replace_file(self._note, orjson.dumps(complete))
        return size
