"""Builds the gateway: the one place that chooses a class for each seam.

`open_gateway` builds every part and starts nothing that listens. `Gateway.start` starts polling and supervision;
`Gateway.close` stops everything in the opposite order.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import structlog

from adapters_registry.checks.base_spec import BaseSpec
from adapters_registry.disk.recipe_texts import RecipeTexts
from adapters_registry.library import ADAPTERS_FOLDER, Library
from adapters_registry.limits import AdapterLimits
from routers.artefacts import ArtefactStore
from routers.base import Losses
from routers.embedders.base import Encoder
from routers.embedders.batching import BatchingEmbedder
from routers.embedders.factory import make_encoder
from routers.embedders.hidden_states import HiddenStateEncoder
from routers.errors import BadSamples
from routers.library.samples import read_samples
from server.access.admission import Admission
from server.access.auth import LOOPBACK_NAMES, Authenticator
from server.access.entry import Entry
from server.access.key_limits import Limiter
from server.engine.base_model import default_cache_dir
from server.engine.connector import TimedConnector
from server.engine.pool import EnginePool
from server.engine.supervisor import EngineOptions, EngineSupervisor, engine_command
from server.engine.vllm import VllmEngine
from server.experts.draining import Drainer
from server.experts.lifecycle import Lifecycle
from server.experts.remote_imports import Imports
from server.experts.watcher import LibraryWatcher
from server.gateway import Gateway
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
from server.policies.fit_data import PolicyData
from server.policies.fitter import Fitter
from server.policies.manager import PolicyManager
from server.policies.scores import ScoreStore
from server.policies.vectors import VectorStore
from server.request.answer import Limits
from server.request.pipeline import Pipeline
from server.request.recorder import Recorder
from server.settings import Settings, SettingsError
from server.sources.fetching import SourceFetcher
from server.telemetry.drift import RecentDecisions, drifts
from server.telemetry.logs import AccessLog
from server.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from server.tracing.exporter import Tracing

IDLE_CONNECTION_S = 4.0
"""Idle connections to engines are closed after this time, before a server with the usual 5 s closes them."""

log = structlog.get_logger(__name__)


async def open_gateway(settings: Settings, encoder: Encoder, model: str) -> Gateway:
    """Build a gateway.

    Args:
        settings: All settings.
        encoder: The sentence encoder, loaded.
        model: The base for the engine: a folder or a hub name; ignored with remote engines.

    Raises:
        SettingsError: The address needs keys and there are none, or a policy has invalid options.
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
    hidden = settings.home / "shadow"  # apart from the artefacts that serve, which a shadow fit must not replace
    shadow = Shadow(
        Fitter(ArtefactStore(hidden)),
        lambda: PolicyData(scores, vectors),
        PolicyStore(hidden).alone,
        embedders,
        metrics,
    )
    recent_decisions = RecentDecisions()
    decisions = DecisionLog(
        library.decisions,
        recent_decisions,
        metrics,
        level=settings.decision_log,
        sample=settings.decision_log_sample,
        keep_days=settings.decision_log_days,
    )
    metrics.show_drift(lambda: drifts(recent_decisions, watcher.catalog.policies))
    pipeline = Pipeline(
        authenticator=authenticator,
        entry=Entry(limiter, admission),
        library=watcher,
        planner=Planner(pool, metrics, memory, shadow),
        pool=pool,
        recorder=Recorder(metrics, decisions, access_log),
        metrics=metrics,
        limits=Limits(settings.first_token_timeout_s, settings.total_timeout_s),
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
        recent_decisions,
        Imports(fetcher, policies.jobs),
        MapMaker(embedder, vectors),
        LeaderboardStore(settings.home / "scores"),
        session,
        supervisor,
        tracing,
    )


def policy_specs(settings: Settings) -> list[PolicySpec]:
    """Return the policies of the settings. Raises SettingsError if a policy's data cannot be used."""
    specs = []
    for name, policy in settings.policies.items():
        try:
            samples = read_samples(policy.data)[0] if policy.data else []
        except BadSamples as error:
            raise SettingsError(f"policies.{name}.data: {error}") from None
        specs.append(PolicySpec(name, policy, tuple(samples)))
    return specs


def _encoder_opener(settings: Settings, model: str) -> Callable[[str], Encoder]:
    """Return the function that loads embedders of single policies."""
    cache_dir = settings.cache_dir or default_cache_dir()

    def open_encoder(name: str) -> Encoder:
        if name != BASE:
            return make_encoder(name, cache_dir)
        if settings.embedder.startswith("hashing"):
            return make_encoder(settings.embedder, cache_dir)  # the test double replaces both embedders
        return HiddenStateEncoder(model)

    return open_encoder


async def open_library(settings: Settings, model: str | None = None) -> Library:
    """Open the library in the home folder; adapters are checked against the base if `model` is its folder."""
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
    log.warning(
        "adapters are not checked against the base's shapes, because its files are not on this machine", base=model
    )
    return None


async def refuse_exposure(settings: Settings, library: Library) -> None:
    """Raise `SettingsError` if the network could reach a gateway without keys."""
    if settings.host in LOOPBACK_NAMES or any(key.revoked_at is None for key in await library.keys.list()):
        return
    raise SettingsError(
        f"Refusing to listen on {settings.host} without API keys: everybody who reaches this machine could use it.\n"
        f"Create one first:  moergate keys create NAME --home {settings.home}\n"
        "or listen on loopback:  --host 127.0.0.1"
    )


def _tracing(settings: Settings) -> Tracing | None:
    if settings.otlp_endpoint is None or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    from server.tracing.exporter import Tracing  # imported on use: it costs a quarter of a second and 5 MB

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
