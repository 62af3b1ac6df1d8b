"""From a manifest's source to checked files: the one way in.

`check` refuses at once what can be refused without asking anybody. `fetch` keeps what has come in
``downloads/<digest of the source>/``, so that the same source asked for again, also after a restart, goes on where
it ended; what nobody has asked for again for a day is removed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from adapters_registry.disk import safe_files
from adapters_registry.disk.file_lock import file_lock
from adapters_registry.disk.layout import CONFIG_FILE, WEIGHTS_FILE
from adapters_registry.disk.uncancelled import in_thread
from adapters_registry.errors import BadInput, BadSource, Problem
from adapters_registry.limits import AdapterLimits
from adapters_registry.sources import Provenance, Source
from server.errors import PermissionDenied
from server.sources.config import Credential, SourceSettings
from server.sources.http import HttpFetcher, Route
from server.sources.hub import Hub
from server.sources.locations import HTTP, OBJECT_STORES, AllowList, Location, parse_location
from server.sources.objects import ObjectFetcher, OpenFileSystem, check_driver
from server.sources.objects import open_filesystem as open_driver
from server.sources.partial import PartialFile
from server.sources.proof import check_key, check_proof, digest_of
from server.sources.secrets import Credentials

MAX_IDLE_S = 24 * 3600.0
"""Age of the last byte after which an unfinished download is removed."""

ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_ARCHIVE = "archive"
_NUM_LOCKS = 64

Progress = Callable[[str, int, int], None]
"""Told the phase, and how many bytes of how many (0: not known) are done; may raise to end the work."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Fetched:
    """Files that are here and have been checked: an archive, or a folder with the adapter's two files."""

    path: Path
    provenance: Provenance


@dataclass(frozen=True, slots=True)
class _Plan:
    """What to fetch: for each file its name, its largest size, and for a URL its place."""

    parts: dict[str, int]
    location: Location | None
    credential: Credential | None


class SourceFetcher:
    """Fetches sources.

    Args:
        settings: What is allowed.
        folder: Where downloads are kept.
        limits: Of adapters.
        max_archive_bytes: Largest archive.
        http: What fetches over HTTP; None is a new one.
        open_filesystem: What makes object stores' file systems.
    """

    def __init__(
        self,
        settings: SourceSettings,
        folder: Path,
        limits: AdapterLimits,
        max_archive_bytes: int,
        *,
        http: HttpFetcher | None = None,
        open_filesystem: OpenFileSystem = open_driver,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._limits = limits
        self._max_archive_bytes = max_archive_bytes
        self._allowed = AllowList(settings.urls)
        self._credentials = Credentials(settings.credentials)
        self._http = http or HttpFetcher(settings.private_hosts)
        self._hub = Hub(settings.hub_endpoint, self._allowed, self._http)
        self._objects = ObjectFetcher(open_filesystem)
        self._needs_driver = open_filesystem is open_driver

    def check(self, source: Source) -> None:
        """Refuse what will not be fetched. Raises PermissionDenied, BadSource."""
        self._plan(source)

    @asynccontextmanager
    async def fetch(self, source: Source, progress: Progress) -> AsyncIterator[Fetched]:
        """Fetch and check a source; the files are there while the context lasts.

        If it ends well, or with a refusal of what came, they are removed; otherwise they stay for the next attempt.

        Raises:
            PermissionDenied, BadSource, StorageFull, StorageUnwritable.
        """
        plan = self._plan(source)
        await asyncio.to_thread(self.remove_old)
        name = _digest(source)
        folder = self._folder / name
        async with file_lock(await asyncio.to_thread(self._lock_of, name), exclusive=True):
            progress("downloading", 0, 0)
            commit = await self._download(source, plan, folder, progress)
            try:
                fetched = await self._checked(source, plan, folder, commit, progress)
            except BadSource:
                await in_thread(shutil.rmtree, folder, True)
                raise
            log.info("source fetched", source=str(source), sha256=fetched.provenance.sha256, commit=commit)
            try:
                yield fetched
            except BadInput:
                await in_thread(shutil.rmtree, folder, True)
                raise
            finally:
                await in_thread(shutil.rmtree, folder / "whole", True)
            await in_thread(shutil.rmtree, folder, True)

    def remove_old(self) -> None:
        """Remove downloads that nobody has gone on with for a day. Blocks."""
        for folder in self._folder.glob("[0-9a-f]*"):
            try:
                newest = max(entry.stat().st_mtime for entry in (folder, *folder.iterdir()))
            except OSError:  # another gateway was faster
                continue
            if time.time() - newest > MAX_IDLE_S:
                shutil.rmtree(folder, ignore_errors=True)

    # -- what to fetch ------------------------------------------------------------------------------------------

    def _plan(self, source: Source) -> _Plan:
        location = None
        two_files = {CONFIG_FILE: self._limits.max_config_bytes, WEIGHTS_FILE: self._limits.max_adapter_bytes}
        parts = two_files
        if source.hub is not None:
            if not self._allowed.allows_hub(source.hub):
                raise _not_allowed(f"hub:{source.hub.repo}", "hub:org/*")
        elif source.url is not None:
            location = parse_location(source.url)
            if not self._allowed.allows(location):
                raise _not_allowed(str(location), f"{location.origin}/")
            if not location.path.endswith("/"):
                if not location.path.lower().endswith(ARCHIVE_ENDINGS):
                    what = "names neither an archive nor a folder"
                    fix = f"End it with one of {', '.join(ARCHIVE_ENDINGS)}, or with '/' for a folder of two files."
                    raise BadSource([Problem("source.url", what, fix)])
                parts = {_ARCHIVE: self._max_archive_bytes}
            if location.scheme in OBJECT_STORES and self._needs_driver:
                check_driver(location.scheme)
        else:
            raise BadSource([Problem("source", "has nothing to fetch", "Give url or hub.")])
        check_key(source, self._settings.keys, required=self._settings.require_signature)
        return _Plan(parts, location, self._credentials.check(source, location))

    # -- fetching -----------------------------------------------------------------------------------------------

    async def _download(self, source: Source, plan: _Plan, folder: Path, progress: Progress) -> str | None:
        """Fetch every file of a plan; returns the hub's commit."""
        is_object = plan.location is not None and plan.location.scheme not in HTTP
        credential = plan.credential
        options = await asyncio.to_thread(self._credentials.options, credential) if is_object and credential else None
        token = None if is_object else await asyncio.to_thread(self._credentials.token, credential)
        resolved = await self._hub.resolve(source.hub, token) if source.hub else None
        before = 0
        for name, max_bytes in plan.parts.items():

            def told(done: int, total: int, before: int = before) -> None:
                progress("downloading", before + done, before + total if total else 0)

            part = PartialFile(folder, name, max_bytes)
            if source.hub is not None and resolved is not None:
                route = self._hub.route(source.hub, resolved.commit, name, token)
                before += await self._http.download(route, part, told)
                wanted = resolved.sha256.get(f"{source.hub.subfolder}/{name}".lstrip("/"))
                await asyncio.to_thread(_check_hubs_own, part.path, wanted, name)
            elif plan.location is not None:
                location = plan.location if name == _ARCHIVE else plan.location.below(name)
                if is_object:
                    before += await self._objects.download(location, part, told, options)
                else:
                    before += await self._http.download(Route(location, self._allowed.allows, token), part, told)
        return resolved.commit if resolved else None

    async def _checked(
        self, source: Source, plan: _Plan, folder: Path, commit: str | None, progress: Progress
    ) -> Fetched:
        """Put the files together under their names, and compare them with what the source promises."""
        path = await in_thread(_assemble, folder, tuple(plan.parts))
        total = sum((folder / f"{name}.part").stat().st_size for name in plan.parts)
        progress("verifying", 0, total)
        done = 0

        def read(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            progress("verifying", done, total)

        digest = await asyncio.to_thread(digest_of, path, read)
        check_proof(source, digest, self._settings.keys)
        provenance = Provenance(
            kind="hub" if source.hub else "url",
            source=str(source.hub or plan.location),
            commit=commit,
            sha256=digest,
            signed_by=source.signature.key if source.signature else None,
        )
        return Fetched(path, provenance)

    def _lock_of(self, name: str) -> Path:
        """One of a few locks, so that the same source is never fetched twice at once. Blocks."""
        locks = self._folder / "locks"
        with safe_files.storage_errors(self._folder):
            locks.mkdir(parents=True, exist_ok=True)
        return locks / str(int(name[:8], 16) % _NUM_LOCKS)


def _digest(source: Source) -> str:
    """Names a source's folder; what is downloaded does not depend on pins, signatures and credentials."""
    return hashlib.sha256(str(source).encode()).hexdigest()[:32]


def _assemble(folder: Path, names: tuple[str, ...]) -> Path:
    """Link the parts to where they can be registered from; the archive itself, or the folder of two files."""
    whole = folder / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    with safe_files.storage_errors(folder):
        whole.mkdir()
        for name in names:
            os.link(folder / f"{name}.part", whole / name)
    return whole / _ARCHIVE if names == (_ARCHIVE,) else whole


def _check_hubs_own(path: Path, wanted: str | None, name: str) -> None:
    """Compare a file with the SHA-256 that the hub has told. Raises BadSource."""
    if wanted is not None and safe_files.sha256_of(path) != wanted:
        path.unlink(missing_ok=True)
        what = "is not what the hub says of it (SHA-256 differs)"
        raise BadSource([Problem(name, what, "Send the request again; if it stays so, do not use this repository.")])


def _not_allowed(place: str, pattern: str) -> PermissionDenied:
    return PermissionDenied(
        f"Adapters may not be fetched from {place}: no pattern of the setting sources.urls covers it. "
        f"The operator can allow it there, for example with {pattern!r}.",
        param="source",
    )
