"""The library: the interface of this package for the gateway, the command line and the tests.

A registration, top to bottom: check the names of the folder's files; copy its two files into the store's waiting room
while hashing them; validate the copy against the base; move it to its folder (durable); record it in the database
(durable). Only then does the call return. A kill in between leaves at most unreferenced files, which `clean_orphans`
removes. File work runs in threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Self
from weakref import WeakValueDictionary

import structlog

from adapters_registry.archives.unpack import unpack_archive
from adapters_registry.checks.base_spec import BaseSpec
from adapters_registry.checks.safetensors_header import HeaderError
from adapters_registry.checks.validation import AdapterFacts, check_listing, validate_adapter
from adapters_registry.content_store import AdapterStorage
from adapters_registry.disk import safe_files
from adapters_registry.disk.file_lock import file_lock
from adapters_registry.disk.recipe_texts import RecipeTexts
from adapters_registry.errors import AdapterNotFound, InvalidAdapter, Problem, quote
from adapters_registry.limits import AdapterLimits
from adapters_registry.merging.compose import compose
from adapters_registry.merging.formulas import MergeOptions
from adapters_registry.merging.method_names import Method
from adapters_registry.names import nearest, split_expert_id
from adapters_registry.records import (
    AdapterRecord,
    AuditEntry,
    Change,
    LibraryChanges,
    Manifest,
    Transition,
    parse_examples,
    utc_now,
)
from adapters_registry.states import OFFERED, OVER, AdapterState
from adapters_registry.stores.base import (
    AdapterStore,
    DecisionStore,
    FeedbackStore,
    KeyStore,
    RunningReader,
    UsageStore,
)
from adapters_registry.stores.database import Database
from adapters_registry.stores.sql import SqlAdapterStore
from adapters_registry.stores.sql_backup import SqlBackup
from adapters_registry.stores.sql_decisions import SqlDecisionStore
from adapters_registry.stores.sql_keys import SqlKeyStore
from adapters_registry.stores.sql_usage import SqlUsageStore

DATABASE_FILE = "registry.sqlite3"
ADAPTERS_FOLDER = "adapters"
LEFTOVER_AGE_S = 3600.0

_NUM_LOCKS = 64
_log = structlog.get_logger(__name__)


class Library:
    """The experts of one base, and the API keys, in one home folder. Create one with `open`.

    `keys` is the store of API keys. `base` may be set later, once the engine knows its model; until then modules and
    shapes are not checked against a base.
    """

    def __init__(
        self, storage: AdapterStorage, database: Database, base: BaseSpec | None, limits: AdapterLimits
    ) -> None:
        self.base = base
        self.limits = limits
        self.storage = storage
        self.texts = RecipeTexts(storage.root)
        self.keys: KeyStore = SqlKeyStore(database)
        self.usage: UsageStore = (usage := SqlUsageStore(database))
        self.running: RunningReader = usage
        self.backup = SqlBackup(database)
        self.decisions: DecisionStore = (decisions := SqlDecisionStore(database))
        self.feedback: FeedbackStore = decisions
        self._end_usage = usage.close
        self._database = database
        self._adapters: AdapterStore = SqlAdapterStore(database)
        self._name_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @classmethod
    async def open(
        cls,
        home: Path,
        *,
        database_url: str | None = None,
        base: BaseSpec | None = None,
        limits: AdapterLimits = AdapterLimits(),  # noqa: B008 - frozen
    ) -> Self:
        """Open the library in `home`, creating or migrating it as needed.

        Raises StorageUnwritable, StorageFull, DatabaseBusy, DatabaseBroken.
        """
        home = _absolute(home)
        storage = AdapterStorage(home / ADAPTERS_FOLDER)
        await asyncio.to_thread(storage.prepare)
        database = Database(database_url or f"sqlite:///{home / DATABASE_FILE}")
        try:
            await database.migrate()
            await asyncio.to_thread(storage.clean_incoming, LEFTOVER_AGE_S)
        except BaseException:
            await database.close()
            raise
        return cls(storage, database, base, limits)

    async def close(self) -> None:
        """Close the database; the library cannot be used afterwards."""
        await self._end_usage()
        await self._database.close()

    # -- registering --------------------------------------------------------------------------------------------

    async def register_folder(
        self, manifest: Manifest, folder: Path, *, actor: str = "", offer: bool = True
    ) -> AdapterRecord:
        """Register the adapter in a folder and offer it under the manifest's name.

        Registering the same content again returns the same version, with card and examples of this manifest. New
        content becomes the active version and the old version drains. Without `offer` the version is only registered;
        the caller probes it.

        Args:
            folder: An absolute path; a real folder, not a link.

        Raises:
            InvalidAdapter, NameTaken, and what `open` raises.
        """
        if not folder.is_absolute():
            fix = "Give the path from the root of the server's file system."
            raise InvalidAdapter([Problem("source.path", f"{quote(folder)} is not absolute", fix)])
        async with self._registering(manifest.name):
            facts = await asyncio.to_thread(self._store_folder, folder)
            return await self._record(manifest, facts, actor, offer=offer)

    async def register_archive(
        self, manifest: Manifest, archive: Path, *, actor: str = "", offer: bool = True
    ) -> AdapterRecord:
        """Register an uploaded archive, or a folder of uploaded files; as `register_folder`, and raises BadArchive."""
        if await asyncio.to_thread(archive.is_dir):
            return await self.register_folder(manifest, _absolute(archive), actor=actor, offer=offer)
        async with self._registering(manifest.name):
            facts = await asyncio.to_thread(self._store_archive, archive)
            return await self._record(manifest, facts, actor, offer=offer)

    async def compose(
        self,
        manifest: Manifest,
        sources: Sequence[tuple[AdapterRecord, float]],
        method: Method,
        options: MergeOptions,
        *,
        actor: str = "",
        offer: bool = True,
    ) -> AdapterRecord:
        """Merge offered adapters by weight and register the result; see `adapters_registry.merging.formulas`.

        Raises CannotMerge, and what `register_folder` raises.
        """
        folders = [(self.folder_of(record), weight) for record, weight in sources]
        async with self._registering(manifest.name):
            facts = await asyncio.to_thread(self._store_merged, folders, method, options)
            return await self._record(manifest, facts, actor, offer=offer)

    def _store_merged(
        self, folders: Sequence[tuple[Path, float]], method: Method, options: MergeOptions
    ) -> AdapterFacts:
        with self.storage.waiting_room() as room:
            compose(folders, room / "merged", method, options, self.limits.max_rank)
            return self._store_folder(room / "merged")

    @asynccontextmanager
    async def _registering(self, name: str) -> AsyncIterator[None]:
        """Serialise registrations of one name, and keep them apart from removals of files."""
        lock = self._name_locks.setdefault(name, asyncio.Lock())
        async with lock, file_lock(self.storage.lock_file, exclusive=False):
            yield

    def _store_archive(self, archive: Path) -> AdapterFacts:
        with self.storage.waiting_room() as room:
            unpack_archive(archive, room / "unpacked", self.limits)
            return self._store_folder(room / "unpacked")

    def _store_folder(self, folder: Path) -> AdapterFacts:
        """Copy a folder, validate the copy and store it. Blocks."""
        try:
            source = safe_files.SourceFolder(folder)
        except (safe_files.NotRegular, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            fix = "Give an existing folder (not a link) that the server can read."
            raise InvalidAdapter([Problem("source.path", f"{quote(folder)}: {reason}", fix)]) from None
        with source, self.storage.waiting_room() as room:
            found = check_listing(source, self.limits)
            try:
                self.storage.receive(source, room, self.limits)
            except InvalidAdapter as error:
                raise InvalidAdapter([*found, *error.problems]) from None
            facts = validate_adapter(room, self.base, self.limits, found=found)
            self.storage.commit(room, facts)
            self.storage.derive(facts.sha256)
            return facts

    async def _record(self, manifest: Manifest, facts: AdapterFacts, actor: str, *, offer: bool) -> AdapterRecord:
        now = utc_now()
        record = AdapterRecord(
            name=manifest.name,
            version=facts.sha256[:8],
            sha256=facts.sha256,
            state=AdapterState.REGISTERED,
            card=manifest.card,
            examples=tuple(manifest.examples),
            rank=facts.rank,
            alpha=facts.alpha,
            target_modules=facts.target_modules,
            size_bytes=facts.size_bytes,
            base_model=facts.base_model,
            created_at=now,
            updated_at=now,
            publish=manifest.publish,
        )
        keep = self._adapters.activate if offer else self._adapters.register
        stored = await keep(record, Change(actor))
        _log.info("adapter registered", expert=stored.expert_id, warnings=list(facts.warnings))
        return stored

    # -- reading ------------------------------------------------------------------------------------------------

    async def get(self, ref: str) -> AdapterRecord:
        """Return a name's active version, or the version ``name@sha8`` if it is offered. Raises AdapterNotFound."""
        name, version = split_expert_id(ref)
        record = await self._adapters.find(name, version)
        if record is None or record.state not in OFFERED:
            raise await self._not_found(ref)
        return record

    async def find(self, ref: str) -> AdapterRecord:
        """Return a version in any state; for a bare name the active one, else the newest that is in service.

        Raises AdapterNotFound.
        """
        name, version = split_expert_id(ref)
        record = await self._adapters.find(name, version)
        if record is None and version is None:
            record = next((each for each in await self._adapters.versions(name) if each.state not in OVER), None)
        if record is None:
            raise await self._not_found(ref)
        return record

    async def _not_found(self, ref: str) -> AdapterNotFound:
        return AdapterNotFound(ref, nearest(split_expert_id(ref)[0], [offered.name for offered in await self.list()]))

    async def list(self, *states: AdapterState) -> tuple[AdapterRecord, ...]:
        """Return all experts in these states, sorted by name; without states, the active ones."""
        return await self._adapters.list(*(states or (AdapterState.ACTIVE,)))

    async def versions(self, name: str) -> tuple[AdapterRecord, ...]:
        """Return all versions of a name, the newest first; empty if the name is unknown."""
        return await self._adapters.versions(name)

    async def audit(
        self, name: str | None = None, *, limit: int = 100, before: int | None = None
    ) -> tuple[AuditEntry, ...]:
        """Return who changed what, when and why, the newest first; see `AdapterStore.audit`."""
        return await self._adapters.audit(name, limit=limit, before=before)

    async def revision(self) -> int:
        """Return a number that rises with every change, by any process on this database."""
        return await self._adapters.revision()

    async def changes(self, since: int, *states: AdapterState) -> LibraryChanges:
        """Return what changed in versions and keys after change number `since`; see `AdapterStore.changes`."""
        return await self._adapters.changes(since, *states)

    def folder_of(self, record: AdapterRecord) -> Path:
        """Return the folder with the version's normalised adapter_config.json and its adapter_model.safetensors."""
        return self.storage.path_of(record.sha256)

    # -- changing -----------------------------------------------------------------------------------------------

    async def set_examples(self, ref: str, examples: Sequence[str], *, actor: str = "") -> AdapterRecord:
        """Replace an offered expert's examples. Raises AdapterNotFound, BadManifest."""
        texts = parse_examples(examples if isinstance(examples, str) else list(examples))
        record = await self.get(ref)
        return await self._adapters.set_examples(record.name, record.version, texts, actor=actor)

    async def move(self, record: AdapterRecord, transition: Transition, change: Change) -> AdapterRecord:
        """Take a version to another state; see `AdapterStore.move`. Raises AdapterNotFound, WrongState."""
        moved = await self._adapters.move(record.name, record.version, transition, change)
        _log.debug("expert moved", expert=moved.expert_id, state=moved.state.value, reason=change.reason)
        return moved

    async def retire(self, ref: str, *, actor: str = "") -> AdapterRecord:
        """Stop offering an expert at once. Its files stay until `purge`, for requests that are running."""
        record = await self.find(ref)
        retired = await self._adapters.retire(record.name, record.version, Change(actor))
        _log.info("adapter retired", expert=retired.expert_id)
        return retired

    async def purge(self, ref: str, *, actor: str = "") -> None:
        """Remove the files of a retired version (``name@sha8``), or of all retired versions of a name.

        Files that another version still needs stay. Raises AdapterNotFound, NotRetired.
        """
        async with file_lock(self.storage.lock_file, exclusive=True):
            for name, version in await self._purgeable(ref):
                sha256 = await self._adapters.mark_purged(name, version, actor=actor)
                if sha256 not in await self._adapters.contents_in_use():
                    await asyncio.to_thread(self.storage.remove, sha256)
                _log.info("adapter purged", expert=f"{name}@{version}")

    async def _purgeable(self, ref: str) -> Sequence[tuple[str, str]]:
        name, version = split_expert_id(ref)
        if version is not None:
            return [(name, version)]
        retired = await self._adapters.list(*OVER)
        found = [(record.name, record.version) for record in retired if record.name == name]
        if not found:
            raise AdapterNotFound(ref, nearest(name, [record.name for record in retired]))
        return found

    def alone_with(self, record: AdapterRecord) -> AbstractAsyncContextManager[None]:
        """Lock a version against all other processes on this home; the lock ends with its process."""
        lock = self.storage.locks / f"{int(record.sha256[:8], 16) % _NUM_LOCKS:02x}"
        return file_lock(lock, exclusive=True)

    # -- maintenance --------------------------------------------------------------------------------------------

    async def clean_orphans(self, older_than_s: float = LEFTOVER_AGE_S) -> int:
        """Remove stored contents that no version refers to, and old leftovers; returns the number of contents."""
        async with file_lock(self.storage.lock_file, exclusive=True):
            needed = await self._adapters.contents_in_use()
            return await asyncio.to_thread(self._remove_orphans, needed, older_than_s)

    def _remove_orphans(self, needed: frozenset[str], older_than_s: float) -> int:
        self.storage.clean_incoming(older_than_s)
        orphans = [sha256 for sha256 in self.storage.iter_all() if sha256 not in needed]
        return sum(self.storage.remove(sha256) for sha256 in orphans if self.storage.age_s(sha256) >= older_than_s)

    async def derive_missing(self) -> None:
        """Compute missing prototypes of active experts, as after a restore or an upgrade."""
        for record in await self.list():
            try:
                await asyncio.to_thread(self.storage.derive, record.sha256)
            except (OSError, ValueError, HeaderError) as error:
                _log.error("expert's files are damaged", expert=record.expert_id, error=str(error))

    async def find_damaged(self) -> tuple[AdapterRecord, ...]:
        """Return active experts whose files are missing or changed. Reads every file: for `doctor` and tests."""
        records = await self.list()
        whole = await asyncio.to_thread(lambda: [self.storage.is_whole(record.sha256) for record in records])
        return tuple(record for record, is_whole in zip(records, whole, strict=True) if not is_whole)


def _absolute(path: Path) -> Path:
    """Make a trusted path (never one from a request) absolute."""
    return path.expanduser().absolute()
