"""The files of adapters on disk: one immutable folder per content, written completely or not at all.

    <root>/<sha256>/adapter_config.json, adapter_model.safetensors      files 0444, addressed by content
    <root>/.prototypes/<sha256>.safetensors                             derived from a content, for gates
    <root>/.incoming/<uuid>/                                            the waiting room: copies under validation
    <root>/.lock                                                        shared by registrations, exclusive for removals

One rename makes a folder appear under its hash, after its bytes and directory entries are on disk. A kill at any moment
therefore leaves complete folders and, at worst, leftovers in the waiting room. This module knows neither names nor the
database. Every method blocks; call them in a worker thread.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters_registry.checks.validation import AdapterFacts
from adapters_registry.disk import safe_files
from adapters_registry.disk.layout import CONFIG_FILE, PROTOTYPES_FOLDER, SHA256, WEIGHTS_FILE, content_hash
from adapters_registry.errors import InvalidAdapter, Problem, StorageUnwritable
from adapters_registry.limits import AdapterLimits
from adapters_registry.merging import arrow_prototypes


class AdapterStorage:
    """The folder that holds all adapters' files. Raises StorageFull and StorageUnwritable."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.incoming = root / ".incoming"
        self.prototypes = root / PROTOTYPES_FOLDER
        self.lock_file = root / ".lock"
        self.locks = root / ".locks"

    def prepare(self) -> None:
        """Create the folders and check that they can be written."""
        with safe_files.storage_errors(self.root):
            try:
                self.incoming.mkdir(parents=True, exist_ok=True)
                self.prototypes.mkdir(exist_ok=True)
                self.locks.mkdir(exist_ok=True)
                self.lock_file.touch()
            except FileExistsError as error:
                raise StorageUnwritable(self.root, "a file is in the way") from error

    # -- reading ------------------------------------------------------------------------------------------------

    def path_of(self, sha256: str) -> Path:
        """Return the folder of a content; it exists if that content is stored."""
        if SHA256.fullmatch(sha256) is None:
            raise ValueError(f"{sha256!r} is not a SHA-256 in hex")
        return self.root / sha256

    def iter_all(self) -> Iterator[str]:
        """Yield the hashes of all stored contents."""
        yield from sorted(entry.name for entry in self.root.iterdir() if SHA256.fullmatch(entry.name))

    def is_whole(self, sha256: str) -> bool:
        """Return whether a content's files exist and match its hash; reads all of them."""
        folder = self.path_of(sha256)
        try:
            config = (folder / CONFIG_FILE).read_bytes()
            return content_hash(config, safe_files.sha256_of(folder / WEIGHTS_FILE)) == sha256
        except OSError:
            return False

    # -- adding -------------------------------------------------------------------------------------------------

    @contextmanager
    def waiting_room(self) -> Iterator[Path]:
        """Provide a new folder on the store's file system; it is removed afterwards unless `commit` moved it."""
        self.prepare()
        folder = self.incoming / uuid.uuid4().hex
        try:
            with safe_files.storage_errors(self.root):
                folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def receive(self, source: safe_files.SourceFolder, folder: Path, limits: AdapterLimits) -> str | None:
        """Copy an adapter's two files into a waiting room; returns the SHA-256 of the copied weights.

        Validation reports a missing file. Raises InvalidAdapter if a file is too large, not regular or not readable.
        """
        self._copy(source, CONFIG_FILE, folder, limits.max_config_bytes)
        return self._copy(source, WEIGHTS_FILE, folder, limits.max_adapter_bytes)

    def _copy(self, source: safe_files.SourceFolder, name: str, folder: Path, max_bytes: int) -> str | None:
        try:
            stream = source.open(name)
        except FileNotFoundError:
            return None
        except (safe_files.NotRegular, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            fix = "Put a regular file there that the server can read; links are not followed."
            raise InvalidAdapter([Problem(name, str(reason), fix)]) from None
        size_bytes = os.fstat(stream.fileno()).st_size
        with stream, safe_files.storage_errors(self.root, size_bytes):
            try:
                if size_bytes > max_bytes:  # the copy checks again: the file may grow
                    raise safe_files.TooLarge(f"has {size_bytes} bytes, more than the {max_bytes} allowed")
                return safe_files.copy_hashed(stream, folder / name, max_bytes)
            except safe_files.TooLarge as error:
                fix = "Train with a smaller rank or fewer modules, or raise the limit."
                raise InvalidAdapter([Problem(name, str(error), fix)]) from None

    def commit(self, folder: Path, facts: AdapterFacts) -> Path:
        """Move a validated copy from its waiting room to its folder; durable when this returns.

        The normalised config replaces the original one. If the content is already stored intact, the copy is dropped.
        """
        target = self.path_of(facts.sha256)
        with safe_files.storage_errors(self.root, len(facts.config)):
            if target.exists() and not self.is_whole(facts.sha256):
                self._set_aside(target)
            if not target.exists():
                (folder / CONFIG_FILE).unlink(missing_ok=True)
                safe_files.write_new(folder / CONFIG_FILE, facts.config)
                for file in folder.iterdir():
                    file.chmod(0o444)
                folder.chmod(0o755)
                safe_files.fsync_path(folder)
                try:
                    folder.rename(target)
                except OSError:
                    if not self.is_whole(facts.sha256):  # otherwise another process stored the same content first
                        raise
            safe_files.fsync_path(self.root)
        return target

    def put(self, folder: Path, facts: AdapterFacts, limits: AdapterLimits | None = None) -> Path:
        """Store the adapter in `folder`, whose weights must still be those that `facts` describe."""
        with safe_files.SourceFolder(folder) as source, self.waiting_room() as room:
            weights_sha256 = self.receive(source, room, limits or AdapterLimits())
            if weights_sha256 != facts.weights_sha256:
                what = "changed between validation and storing"
                fix = "Register it again, and do not change the folder while it is read."
                raise InvalidAdapter([Problem(WEIGHTS_FILE, what, fix)])
            return self.commit(room, facts)

    def derive(self, sha256: str) -> Path:
        """Compute the prototypes of a stored content if they are missing; atomic. Returns their file."""
        target = self.prototypes / f"{sha256}.safetensors"
        if not target.exists():
            derived = arrow_prototypes.encode(arrow_prototypes.prototypes_of(self.path_of(sha256) / WEIGHTS_FILE))
            with self.waiting_room() as room, safe_files.storage_errors(self.root, len(derived)):
                safe_files.write_new(room / target.name, derived)
                (room / target.name).rename(target)
        return target

    # -- removing -----------------------------------------------------------------------------------------------

    def remove(self, sha256: str) -> bool:
        """Remove a content; returns False if it was not stored. The caller makes sure that nothing needs it."""
        target = self.path_of(sha256)
        with safe_files.storage_errors(self.root):
            (self.prototypes / f"{sha256}.safetensors").unlink(missing_ok=True)
            if not target.exists():
                return False
            self._set_aside(target)
            safe_files.fsync_path(self.root)
        return True

    def age_s(self, sha256: str) -> float:
        """Return the seconds since the content was stored; 0 if it is not stored."""
        try:
            return max(0.0, time.time() - self.path_of(sha256).stat().st_mtime)
        except FileNotFoundError:
            return 0.0

    def clean_incoming(self, older_than_s: float = 3600.0) -> int:
        """Remove old folders that killed processes left in the waiting room; returns how many."""
        removed = 0
        for leftover in list(self.incoming.iterdir()):
            try:
                is_old = time.time() - leftover.stat().st_mtime >= older_than_s
            except FileNotFoundError:
                continue
            if is_old:
                shutil.rmtree(leftover, ignore_errors=True)
                removed += 1
        return removed

    def _set_aside(self, target: Path) -> None:
        """Rename a folder away, then delete it, so that no reader sees part of it."""
        doomed = self.incoming / uuid.uuid4().hex
        target.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
