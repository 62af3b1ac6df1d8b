"""A running gateway: its parts, how they start, what is not ready yet, and how they stop."""

from __future__ import annotations

import asyncio
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import orjson
import structlog

from adapters_registry.errors import RegistryError
from adapters_registry.library import LEFTOVER_AGE_S, Library
from adapters_registry.records import parse_manifest
from adapters_registry.states import AdapterState
from routers.errors import RouterError
from server.access.admission import Admission
from server.access.auth import Authenticator
from server.access.key_limits import Limiter
from server.engine.pool import EnginePool
from server.engine.supervisor import EngineSupervisor
from server.experts.draining import Drainer
from server.experts.lifecycle import WAITING, Lifecycle
from server.experts.remote_imports import Imports
from server.experts.watcher import LibraryWatcher
from server.insights.example_map import MapMaker
from server.insights.leaderboard import LeaderboardStore
from server.journal.decision_log import DecisionLog
from server.planning.shadow import Shadow
from server.policies.embedders import Embedders
from server.policies.manager import PolicyManager
from server.policies.scores import ScoreStore
from server.request.pipeline import Pipeline
from server.settings import Settings
from server.telemetry.drift import RecentDecisions
from server.telemetry.logs import AccessLog
from server.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from server.tracing.exporter import Tracing

log = structlog.get_logger(__name__)


@dataclass
class Gateway:
    """Every part of a running gateway."""

    settings: Settings
    metrics: Metrics
    access_log: AccessLog
    library: Library
    embedders: Embedders
    policies: PolicyManager
    scores: ScoreStore
    pool: EnginePool
    watcher: LibraryWatcher
    authenticator: Authenticator
    limiter: Limiter
    admission: Admission
    pipeline: Pipeline
    lifecycle: Lifecycle
    shadow: Shadow
    drainer: Drainer
    decisions: DecisionLog
    recent_decisions: RecentDecisions
    imports: Imports
    example_map: MapMaker
    leaderboard: LeaderboardStore
    session: aiohttp.ClientSession
    supervisor: EngineSupervisor | None = None
    tracing: Tracing | None = None
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _registering: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the local engine, if there is one, and all polling."""
        if self.supervisor:
            self.supervisor.start()
        self.pool.start()
        self.watcher.start()
        self.lifecycle.start()
        self.decisions.start()
        self._tasks.append(asyncio.create_task(self._clean_up()))
        if self.settings.library:
            self.watcher.may_fit.clear()
            self._registering = asyncio.create_task(self._register_manifests(self.settings.library))
            self._tasks.append(self._registering)

    def missing(self) -> dict[str, str]:
        """Return what is not ready, by part; empty when requests can be answered."""
        missing: dict[str, str] = {}
        if not self.pool.ready:
            missing["engine"] = self.pool.describe()
        if self.watcher.problem and not self.watcher.has_been_read:
            missing["registry"] = self.watcher.problem
        elif self._registering and not self._registering.done():
            missing["registry"] = "the library's manifests are being registered"
        if absent := self.policies.missing:
            missing["router"] = "; ".join(f"{name}: {why}" for name, why in absent.items())
        return missing

    async def close(self) -> None:
        """Stop everything that was started."""
        self.admission.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.lifecycle.close()
        await self.imports.close()
        await self.drainer.close()
        await self.watcher.close()
        await self.shadow.close()
        await self.policies.close()
        await self.pool.close()
        if self.supervisor:
            await self.supervisor.stop()
        await self.session.close()
        self.access_log.flush()
        if self.tracing:
            await self.tracing.close()
        await self.embedders.close()
        await self.limiter.close()
        await self.decisions.close()
        await self.library.close()

    async def _clean_up(self) -> None:
        """Remove unreferenced files and old uploads of an earlier run, and compute missing prototypes."""
        await asyncio.to_thread(_remove_old, self.settings.home / "uploads")
        await self.imports.clean_up()
        try:
            await self.library.clean_orphans()
            await self.library.derive_missing()
            await self.drainer.collect()
        except RegistryError as error:
            log.warning("leftovers not removed", error=str(error))

    async def _register_manifests(self, path: Path) -> None:
        """Register the experts that a library.json lists; refused experts are logged and skipped."""
        try:
            await self._register_all(path)
        finally:
            self.watcher.may_fit.set()
            await self.watcher.show_experts()

    async def _register_all(self, path: Path) -> None:
        try:
            manifests = [parse_manifest(entry) for entry in orjson.loads(await asyncio.to_thread(path.read_bytes))]
        except (OSError, orjson.JSONDecodeError, RegistryError, TypeError) as error:
            log.error("library file cannot be used", path=str(path), error=str(error))
            return
        for manifest in manifests:
            source = manifest.source.path if manifest.source else None
            if not source:
                log.error(
                    "manifest without a folder; register other sources with POST /admin/adapters", expert=manifest.name
                )
                continue
            folder = (path.parent / source).absolute()
            try:
                await self.library.register_folder(manifest, folder, actor="start-up", offer=False)
            except RegistryError as error:
                log.error("expert refused", expert=manifest.name, error=str(error))
        await self._embed_ahead()
        await self.lifecycle.all_seen_through()

    async def _embed_ahead(self) -> None:
        """Embed the library's examples while the engine starts; if this fails, the later fit reports why."""
        try:
            await self.policies.prepare(await self.library.list(*WAITING, AdapterState.ACTIVE))
        except (RegistryError, RouterError) as error:
            log.warning("examples not embedded ahead", error=str(error))


def _remove_old(folder: Path) -> None:
    """Remove sub-folders unchanged for an hour; younger ones may belong to another gateway."""
    for entry in folder.glob("*"):
        if time.time() - entry.stat().st_mtime > LEFTOVER_AGE_S:
            shutil.rmtree(entry, ignore_errors=True)
