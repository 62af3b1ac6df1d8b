"""Registers adapters: from a folder, an upload, a remote source, or by merging experts. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import re
import shutil
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict

from adapters_registry.disk.layout import ADAPTER_FILES
from adapters_registry.library import Library
from adapters_registry.merging.formulas import MergeOptions
from adapters_registry.merging.method_names import USES_DENSITY, USES_SEED, Method
from adapters_registry.records import AdapterRecord, Card, Composition, Manifest, parse_manifest
from adapters_registry.sources import Provenance
from adapters_registry.states import AdapterState
from server.access.auth import Principal
from server.engine.recipes import Mix, Single
from server.errors import AdapterRefused, BadRequest, Conflict, PermissionDenied
from server.experts.lifecycle import Lifecycle
from server.experts.remote_imports import Imports, from_source
from server.experts.watcher import LibraryWatcher
from server.jobs import Job
from server.settings import Settings

_SAFE_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


class ComposeRequest(BaseModel):
    """The body of ``POST /admin/adapters/compose``."""

    model_config = ConfigDict(extra="forbid")

    name: str
    recipe: str
    method: Method = "exact"
    rank: int | None = None
    density: float = 0.5
    seed: int = 0
    card: Card = Card()
    examples: list[str] = []


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """A file that a caller has sent, open for reading."""

    name: str
    content: BinaryIO


class Registrar:
    """Registers adapters and brings them to what their manifests ask for.

    Args:
        library: Where adapters are stored.
        watcher: Shows changes to callers.
        lifecycle: Probes registered versions and publishes them.
        imports: Fetches adapters from remote sources.
        settings: Limits, and folders that may be registered from.
    """

    def __init__(
        self, library: Library, watcher: LibraryWatcher, lifecycle: Lifecycle, imports: Imports, settings: Settings
    ) -> None:
        self._library = library
        self._watcher = watcher
        self._lifecycle = lifecycle
        self._imports = imports
        self._settings = settings
        self._uploads = settings.home / "uploads"

    async def register_path(self, manifest: Manifest, actor: str) -> AdapterRecord:
        """Register from a folder on this machine."""
        if manifest.source is None or not manifest.source.path:
            raise BadRequest(
                "The manifest has no source. Give {'source': {'path': '/folder'}}, or hub or url in its place, or "
                "upload the files as multipart.",
                param="source",
            )
        folder = Path(manifest.source.path)
        self._check_allowed(folder)
        manifest = from_source(manifest, Provenance(kind="folder", source=str(folder)))
        return await self._register(manifest, folder, actor, is_upload=False)

    def register_remote(self, manifest: Manifest, actor: str) -> Job:
        """Fetch a hub or URL source in the background, then register it; the job shows the progress."""
        self._check_name(manifest.name)

        async def register(manifest: Manifest, fetched: Path) -> dict[str, Any]:
            return describe_adapter(await self._register(manifest, fetched, actor, is_upload=True))

        return self._imports.submit(manifest, register)

    async def register_upload(self, manifest: Manifest, files: Sequence[UploadedFile], actor: str) -> AdapterRecord:
        """Register from uploaded files: one archive, or the adapter's separate files."""
        if manifest.source is not None and manifest.source.is_remote:
            raise BadRequest("Send the files, or name their source; not both.", param="source")
        manifest = from_source(manifest, Provenance(kind="upload"))
        staging = self._uploads / uuid.uuid4().hex
        try:
            uploaded = await asyncio.to_thread(_stage, files, staging)
            return await self._register(manifest, uploaded, actor, is_upload=True)
        finally:
            await asyncio.to_thread(shutil.rmtree, staging, True)

    async def compose(self, request: ComposeRequest, principal: Principal) -> AdapterRecord:
        """Merge experts into an ordinary adapter and register it; its card records how it was made."""
        self._check_name(request.name)
        catalog = self._watcher.catalog  # read once, so that every expert of the recipe has its record
        recipe = catalog.recipe(request.recipe, principal)
        match recipe:
            case Mix(weights, "output"):
                pass
            case Mix():
                raise BadRequest("Write the mix without agg=ab and choose the method ab_linear.", param="recipe")
            case Single(expert_id):
                weights = ((expert_id, 1.0),)
            case _:
                raise BadRequest("Only a mix(...) can be composed; a gate needs the engine's plugin.", param="recipe")
        found = ((catalog.record_of(expert_id), weight) for expert_id, weight in weights)
        sources = [(record, weight) for record, weight in found if record is not None]
        options = MergeOptions(rank=request.rank, density=request.density, seed=request.seed)
        made = Composition(
            recipe=str(recipe),
            method=request.method,
            rank=request.rank,
            density=request.density if request.method in USES_DENSITY else None,
            seed=request.seed if request.method in USES_SEED else None,
        )
        card = request.card.model_copy(update={"composed_from": made, "obtained_from": None})
        if card.tenant is None:
            card = card.model_copy(update={"tenant": _tenant_of([record for record, _ in sources])})
        manifest = parse_manifest({"name": request.name, "card": card.model_dump(), "examples": request.examples})
        actor, method = principal.key_id, request.method
        return await self._offer(
            lambda: self._library.compose(manifest, sources, method, options, actor=actor, offer=False)
        )

    async def set_examples(self, ref: str, examples: list[str], actor: str) -> AdapterRecord:
        """Replace an expert's example prompts; policies follow."""
        record = await self._library.set_examples(ref, examples, actor=actor)
        await self._watcher.show_experts()
        return record

    async def _register(self, manifest: Manifest, source: Path, actor: str, *, is_upload: bool) -> AdapterRecord:
        self._check_name(manifest.name)
        register = self._library.register_archive if is_upload else self._library.register_folder
        return await self._offer(lambda: register(manifest, source, actor=actor, offer=False))

    async def _offer(self, register: Callable[[], Awaitable[AdapterRecord]]) -> AdapterRecord:
        """Register a version, probe and publish it; raises AdapterRefused if the probes reject it."""
        record = await self._lifecycle.see_through(await register())
        if record.state is AdapterState.REJECTED:
            found = record.report.problems if record.report else ()
            listed = " ".join(map(str, found))
            problems = tuple({"where": each.where, "what": each.what, "fix": each.fix} for each in found)
            raise AdapterRefused(f"{record.expert_id} was rejected by its probes. {listed}", problems=problems)
        return record

    def _check_name(self, name: str) -> None:
        if name in self._watcher.catalog.policies or name in self._settings.policies:
            raise Conflict(f"{name!r} is the name of a policy; choose another name.", param="name")

    def _check_allowed(self, folder: Path) -> None:
        allowed = self._settings.source_dirs
        if not allowed:
            return
        real = folder.resolve()
        if not any(real.is_relative_to(root.resolve()) for root in allowed):
            raise PermissionDenied("Adapters may not be registered from this folder (setting source_dirs).")


def describe_adapter(record: AdapterRecord) -> dict[str, Any]:
    """A record as the admin API shows it."""
    return {
        "id": record.expert_id,
        "name": record.name,
        "version": record.version,
        "sha256": record.sha256,
        "state": record.state.value,
        "rank": record.rank,
        "alpha": record.alpha,
        "target_modules": list(record.target_modules),
        "size_bytes": record.size_bytes,
        "base_model": record.base_model,
        "card": record.card.model_dump(),
        "num_examples": len(record.examples),
        "created_at": record.created_at.isoformat(),
        "updated_at": record.updated_at.isoformat(),
        "publish": {"to": record.publish.to, "share": record.publish.share},
        "share": record.share,
        "report": record.report.as_json() if record.report else None,
    }


def _tenant_of(sources: Iterable[AdapterRecord]) -> str | None:
    """The tenant that a merge of these experts belongs to; raises BadRequest if they have several."""
    tenants = sorted({record.card.tenant for record in sources if record.card.tenant})
    if len(tenants) > 1:
        raise BadRequest(
            f"These experts belong to the tenants {', '.join(tenants)}: set card.tenant to the tenant of the result, "
            "or to '' for everybody.",
            param="card.tenant",
        )
    return tenants[0] if tenants else None


def _stage(files: Sequence[UploadedFile], staging: Path) -> Path:
    """Write uploaded files into a new folder; returns the archive, or the folder of separate files."""
    staging.mkdir(parents=True)
    if len(files) == 1 and files[0].name not in ADAPTER_FILES:
        archive = staging / "archive"
        _copy(files[0], archive)
        return archive
    folder = staging / "files"
    folder.mkdir()
    for file in files:
        if not _SAFE_FILE_NAME.fullmatch(file.name) or (folder / file.name).exists():
            shown = ascii(file.name[:100])
            problem = {"where": f"files: {shown}", "what": "a bad or duplicate file name", "fix": "Rename the file."}
            raise AdapterRefused(f"The upload has a file with a bad or duplicate name: {shown}.", problems=(problem,))
        _copy(file, folder / file.name)
    return folder


def _copy(file: UploadedFile, target: Path) -> None:
    with target.open("xb") as out:
        shutil.copyfileobj(file.content, out, 1 << 20)
