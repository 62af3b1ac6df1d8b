"""Puts the gateway together: the one place that picks classes for seams.

`open_gateway` builds every part and starts nothing that listens; `Gateway.start` begins to poll and
supervise; `Gateway.close` ends everything it started, in the opposite order.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import orjson
import structlog

from adapters_registry.checks.base_spec import BaseSpec
from adapters_registry.disk.recipe_texts import RecipeTexts
from adapters_registry.errors import RegistryError
from adapters_registry.library import ADAPTERS_FOLDER, LEFTOVER_AGE_S, Library
from adapters_registry.limits import AdapterLimits
from adapters_registry.records import parse_manifest
from adapters_registry.states import AdapterState
from routers.artefacts import ArtefactStore
from routers.base import Losses
from routers.embedders.base import Encoder
from routers.embedders.batching import BatchingEmbedder
from routers.embedders.factory import make_encoder
from routers.embedders.hidden_states import HiddenStateEncoder
from routers.errors import BadSamples, RouterError
from routers.library.samples import read_samples
from server.access.admission import Admission
from server.access.auth import LOOPBACK_NAMES, Authenticator
from server.access.key_limits import Limiter
from server.engine.base_model import default_cache_dir
from server.engine.connector import TimedConnector
from server.engine.pool import EnginePool
from server.engine.supervisor import EngineOptions, EngineSupervisor, engine_command
from server.engine.vllm import VllmEngine
from server.experts.draining import Drainer
from server.experts.lifecycle import WAITING, Lifecycle
from server.experts.remote_imports import Imports
from server.experts.watcher import LibraryWatcher
from server.insights.example_map import MapMaker
from server.insights.leaderboard import LeaderboardStore
from server.journal.decision_log import DecisionLog
from server.planning.catalog import Catalog
from server.planning.conversations import ConversationMemory
from server.planning.planner import Planner
from server.planning.shadow import Shadow
from server.policies.definitions import PolicySpec, PolicyStore
from server.policies.embedders import BASE, Embedders
from server.policies.engine_losses import EngineLosses
from server.policies.manager import PolicyManager
from server.policies.scores import ScoreStore
from server.policies.vectors import VectorStore
from server.request.answer import Limits
from server.request.pipeline import GENERATING, Pipeline
from server.settings import Settings, SettingsError
from server.sources.fetching import SourceFetcher
from server.telemetry.drift import Traffic, drifts
from server.telemetry.logs import AccessLog
from server.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from server.tracing.exporter import Tracing

IDLE_CONNECTION_S = 4.0
"""Kept-alive connections to engines are closed by us before a server with the usual 5 s does it."""

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
    traffic: Traffic
    imports: Imports
    example_map: MapMaker
    leaderboard: LeaderboardStore
    session: aiohttp.ClientSession
    supervisor: EngineSupervisor | None = None
    tracing: Tracing | None = None
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _registering: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the engine, if it is ours, and all polling."""
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
        """What is not ready, by part; empty when requests can be answered."""
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
        """End everything that was started."""
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
        """Remove what an earlier end left behind, files without a record and old uploads; derive what is missing."""
        await asyncio.to_thread(_remove_old, self.settings.home / "uploads")
        await self.imports.clean_up()
        try:
            await self.library.clean_orphans()
            await self.library.derive_missing()
            await self.drainer.collect()
        except RegistryError as error:
            log.warning("leftovers not removed", error=str(error))

    async def _register_manifests(self, path: Path) -> None:
        """Register the experts that a library.json lists; one that is refused is logged and the others go on."""
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
                log.error("manifest without a folder: other sources are fetched by POST", expert=manifest.name)
                continue
            folder = (path.parent / source).absolute()
            try:
                await self.library.register_folder(manifest, folder, actor="start-up", offer=False)
            except RegistryError as error:
                log.error("expert refused", expert=manifest.name, error=str(error))
        await self._embed_ahead()
        await self.lifecycle.all_seen_through()

    async def _embed_ahead(self) -> None:
        """What the policies will be fitted to, while the engine starts; should it fail, the fit will say why."""
        try:
            await self.policies.prepare(await self.library.list(*WAITING, AdapterState.ACTIVE))
        except (RegistryError, RouterError) as error:
            log.warning("examples not embedded ahead", error=str(error))


async def open_gateway(settings: Settings, encoder: Encoder, model: str) -> Gateway:
    """Build a gateway.

    Args:
        settings: All settings.
        encoder: The sentence encoder, loaded.
        model: The base as the engine gets it: a folder or a hub name; ignored with remote engines.

    Raises:
        SettingsError: The address needs keys and there are none, or a policy has bad options.
        RegistryError: The home folder or its database cannot be used.
        EngineMissing: A local engine is wanted and vLLM is not installed.
    """
    metrics = Metrics(max_experts=settings.metrics_experts, prices=settings.prices)
    tracing = _tracing(settings)
    library = await open_library(settings, model)
    try:
        await refuse_exposure(settings, library)
    except SettingsError:
        await library.close()
        raise
    session = _session(settings, metrics)
    embedder = BatchingEmbedder(encoder, cache_entries=settings.embed_cache_entries)
    supervisor, engines = _engines(settings, model, session, metrics, library.texts)
    pool = EnginePool(engines, metrics)
    if supervisor:
        pool.on_ready = supervisor.note_ready
    embedders = Embedders(embedder, _encoder_opener(settings, model), settings.embed_cache_entries)
    scores = ScoreStore(settings.home / "scores")
    folder = settings.home / "policies"
    vectors = VectorStore(folder / "vectors.sqlite")
    loop = asyncio.get_running_loop()
    results = settings.home / "scores" / "losses.sqlite"

    def losses() -> Losses | None:
        return EngineLosses(pool, loop, results, settings.served_base_name) if pool.ready else None

    policies = PolicyManager(
        policy_specs(settings),
        embedders,
        ArtefactStore(folder),
        PolicyStore(folder),
        scores,
        metrics,
        vectors,
        losses,
    )
    base_names = tuple(dict.fromkeys((settings.served_base_name, settings.base_model)))
    authenticator = Authenticator(library.keys)
    watcher = LibraryWatcher(library, policies, base_names, metrics, authenticator.forget)
    admission = Admission(settings.max_concurrency, settings.max_queue, settings.queue_timeout_s)
    access_log = AccessLog(settings.log_format if settings.log_level in ("debug", "info") else None)
    metrics.show_load(lambda: admission.num_active, lambda: admission.num_waiting)
    limiter = Limiter(library.usage, metrics)
    memory = ConversationMemory()
    shadow = Shadow(_shadow_fitter(settings, embedders, scores, vectors), metrics)
    traffic = Traffic()
    decisions = DecisionLog(
        library.decisions,
        traffic,
        metrics,
        level=settings.decision_log,
        endpoints=GENERATING,
        sample=settings.decision_log_sample,
        keep_days=settings.decision_log_days,
    )
    metrics.show_drift(lambda: drifts(traffic, watcher.catalog.policies))
    pipeline = Pipeline(
        authenticator,
        limiter,
        admission,
        watcher,
        Planner(pool, metrics, memory, shadow),
        pool,
        metrics,
        Limits(settings.first_token_timeout_s, settings.total_timeout_s),
        access_log,
        decisions,
        count_stream_tokens=settings.count_stream_tokens,
    )
    lifecycle = Lifecycle(library, watcher, pool, metrics, probes=settings.probe_adapters)
    drainer = Drainer(
        library,
        pool,
        memory,
        [engine.unload for _, engine in engines],
        kept_versions=settings.kept_versions,
        conversation_idle_s=settings.conversation_idle_s,
    )

    def follow(catalog: Catalog) -> None:
        drainer.follow([*catalog.experts.values(), *catalog.others.values()])
        shadow.follow(catalog)

    watcher.on_shown = follow
    fetcher = SourceFetcher(settings.sources, settings.home / "downloads", library.limits, settings.max_upload_bytes)
    return Gateway(
        settings,
        metrics,
        access_log,
        library,
        embedders,
        policies,
        scores,
        pool,
        watcher,
        authenticator,
        limiter,
        admission,
        pipeline,
        lifecycle,
        shadow,
        drainer,
        decisions,
        traffic,
        Imports(fetcher, policies.jobs),
        MapMaker(embedder, vectors),
        LeaderboardStore(settings.home / "scores"),
        session,
        supervisor,
        tracing,
    )


def _shadow_fitter(
    settings: Settings, embedders: Embedders, scores: ScoreStore, vectors: VectorStore
) -> Callable[[Sequence[PolicySpec]], PolicyManager]:
    """How policies are fitted a second time, for decisions that are only counted."""
    folder = settings.home / "shadow"

    def manager(specs: Sequence[PolicySpec]) -> PolicyManager:
        unseen = Metrics(max_experts=1, prices={})
        return PolicyManager(specs, embedders, ArtefactStore(folder), PolicyStore(folder), scores, unseen, vectors)

    return manager


def policy_specs(settings: Settings) -> list[PolicySpec]:
    """The policies of the settings; raises SettingsError if a policy's data cannot be used."""
    specs = []
    for name, policy in settings.policies.items():
        try:
            samples = read_samples(policy.data)[0] if policy.data else []
        except BadSamples as error:
            raise SettingsError(f"policies.{name}.data: {error}") from None
        specs.append(PolicySpec(name, policy, tuple(samples)))
    return specs


def _encoder_opener(settings: Settings, model: str) -> Callable[[str], Encoder]:
    """How embedders are loaded that single policies ask for."""
    cache_dir = settings.cache_dir or default_cache_dir()

    def open_encoder(name: str) -> Encoder:
        if name != BASE:
            return make_encoder(name, cache_dir)
        if settings.embedder.startswith("hashing"):
            return make_encoder(settings.embedder, cache_dir)  # the double stands for both
        return HiddenStateEncoder(model)

    return open_encoder


async def open_library(settings: Settings, model: str | None = None) -> Library:
    """The library in the home folder; with a base folder, adapters are checked against it."""
    base = await asyncio.to_thread(_base_spec, model) if model else None
    limits = AdapterLimits(
        max_rank=settings.max_lora_rank,
        max_adapter_bytes=settings.max_adapter_bytes,
        max_unpacked_bytes=settings.max_adapter_bytes + (64 << 20),
    )
    return await Library.open(settings.home, database_url=settings.database_url, base=base, limits=limits)


def _base_spec(model: str) -> BaseSpec | None:
    if Path(model).is_dir():
        return BaseSpec.from_folder(Path(model))
    log.warning("adapters are not checked against the base's shapes, for its files are not here", base=model)
    return None


async def refuse_exposure(settings: Settings, library: Library) -> None:
    """Raise `SettingsError` if strangers could reach a gateway without keys."""
    if settings.host in LOOPBACK_NAMES or any(key.revoked_at is None for key in await library.keys.list()):
        return
    raise SettingsError(
        f"Will not listen on {settings.host} without API keys: anybody who reaches this machine could use it.\n"
        f"Create one first:  moergate keys create NAME --home {settings.home}\n"
        "or listen on loopback:  --host 127.0.0.1"
    )


def _remove_old(folder: Path) -> None:
    """Remove sub-folders that nothing has touched for an hour; younger ones may be another gateway's."""
    for entry in folder.glob("*"):
        if time.time() - entry.stat().st_mtime > LEFTOVER_AGE_S:
            shutil.rmtree(entry, ignore_errors=True)


def _tracing(settings: Settings) -> Tracing | None:
    if settings.otlp_endpoint is None or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    from server.tracing.exporter import Tracing  # only now: a quarter of a second, and 5 MB

    return Tracing(settings.otlp_endpoint)


def _session(settings: Settings, metrics: Metrics) -> aiohttp.ClientSession:
    connector = TimedConnector(metrics.phases["connect"], limit=0, keepalive_timeout=IDLE_CONNECTION_S)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_timeout_s)
    return aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        auto_decompress=True,
        skip_auto_headers=("User-Agent",),
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=1 << 18,
    )


def _engines(
    settings: Settings, model: str, session: aiohttp.ClientSession, metrics: Metrics, texts: RecipeTexts
) -> tuple[EngineSupervisor | None, list[tuple[str, VllmEngine]]]:
    if settings.engine_url:
        remote = [(url, VllmEngine(url, session, key=settings.engine_key, texts=texts)) for url in settings.engine_url]
        return None, remote
    options = EngineOptions(
        model=model,
        adapters_dir=(settings.home / ADAPTERS_FOLDER).absolute(),
        dtype=settings.dtype,
        max_loras=settings.max_loras,
        max_recipes=settings.max_recipes,
        max_lora_rank=settings.max_lora_rank,
        max_model_len=settings.max_model_len,
        kv_cache_gib=settings.kv_cache_gib,
        extra_args=settings.engine_arg,
    )
    supervisor = EngineSupervisor(engine_command(options), metrics)
    command = supervisor.command
    return supervisor, [("local", VllmEngine(command.url, session, key=command.key, base_model="base", texts=texts))]
