"""The admin API: register, list, change and remove adapters. Needs the scope ``admin``."""

from __future__ import annotations

import asyncio
import re
import shutil
import uuid
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.datastructures import FormData, UploadFile
from starlette.types import Message

from adapters_registry.library import Library
from adapters_registry.merging.formulas import MergeOptions
from adapters_registry.merging.method_names import USES_DENSITY, USES_SEED, Method
from adapters_registry.records import AdapterRecord, Card, Composition, Manifest, parse_manifest
from adapters_registry.sources import Provenance
from adapters_registry.states import AdapterState
from server.access.auth import Authenticator, Principal
from server.api.incoming import read_body, validated
from server.engine.recipes import Mix, Single
from server.errors import AdapterRefused, BadRequest, BodyTooLarge, Conflict, PermissionDenied
from server.experts.lifecycle import Lifecycle
from server.experts.remote_imports import Imports, from_source
from server.experts.watcher import LibraryWatcher
from server.jobs import Job
from server.settings import Settings

_SAFE_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_ADAPTER_FILES = frozenset({"adapter_config.json", "adapter_model.safetensors"})
_MAX_FORM_FILES = 64
_MAX_MANIFEST_BYTES = 32 << 20

StateFilter = Literal["all", "registered", "validating", "ready", "canary", "active", "draining", "retired", "rejected"]


class ComposeOrder(BaseModel):
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


class ExamplesOrder(BaseModel):
    """The body of ``PUT /admin/adapters/{ref}/examples``; a bare array of prompts is taken too."""

    model_config = ConfigDict(extra="forbid")

    examples: list[str]


class AdapterAdmin:
    """What the admin routes do, apart from HTTP.

    Args:
        library: Where adapters are kept.
        watcher: Shows changes to callers.
        lifecycle: Sees registered versions through to being offered.
        imports: Fetches adapters from elsewhere.
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
        """Fetch a hub or URL source in the background, then register it; the job tells how far it is."""
        self._check_name(manifest.name)

        async def register(manifest: Manifest, fetched: Path) -> dict[str, Any]:
            return show(await self._register(manifest, fetched, actor, is_upload=True))

        return self._imports.submit(manifest, register)

    async def register_upload(self, manifest: Manifest, files: list[UploadFile], actor: str) -> AdapterRecord:
        """Register from uploaded files: one archive, or the adapter's files as they are."""
        if manifest.source is not None and manifest.source.is_remote:
            raise BadRequest("Send the files, or name their source; not both.", param="source")
        manifest = from_source(manifest, Provenance(kind="upload"))
        staging = self._uploads / uuid.uuid4().hex
        try:
            uploaded = await asyncio.to_thread(_stage, files, staging)
            return await self._register(manifest, uploaded, actor, is_upload=True)
        finally:
            await asyncio.to_thread(shutil.rmtree, staging, True)

    async def compose(self, order: ComposeOrder, principal: Principal) -> AdapterRecord:
        """Merge experts into an ordinary adapter and register it, with how it was made on its card."""
        self._check_name(order.name)
        catalog = self._watcher.catalog  # one for both, so that every expert of the recipe has its record
        recipe = catalog.recipe(order.recipe, principal)
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
        options = MergeOptions(rank=order.rank, density=order.density, seed=order.seed)
        made = Composition(
            recipe=str(recipe),
            method=order.method,
            rank=order.rank,
            density=order.density if order.method in USES_DENSITY else None,
            seed=order.seed if order.method in USES_SEED else None,
        )
        card = order.card.model_copy(update={"composed_from": made, "obtained_from": None})
        if card.tenant is None:
            card = card.model_copy(update={"tenant": _tenant_of([record for record, _ in sources])})
        manifest = parse_manifest({"name": order.name, "card": card.model_dump(), "examples": order.examples})
        return await self._offer(
            lambda: self._library.compose(manifest, sources, order.method, options, actor=principal.key_id, offer=False)
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
        """Register a version and see it through; raises AdapterRefused if the engine's probes reject it."""
        record = await self._lifecycle.see_through(await register())
        if record.state is AdapterState.REJECTED:
            problems = tuple((record.report or {}).get("problems", ()))
            listed = " ".join(f"{each['where']}: {each['what']}. {each['fix']}" for each in problems)
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


def admin_router(admin: AdapterAdmin, library: Library, authenticator: Authenticator, settings: Settings) -> APIRouter:
    """Routes under ``/admin``."""
    router = APIRouter(prefix="/admin", tags=["admin"])

    async def principal_of(request: Request) -> Principal:
        return await authenticator.authorise(request.headers, "admin")

    @router.post(
        "/adapters",
        status_code=201,
        summary="Register an adapter from a folder, an upload, the hub or a URL",
        responses={202: {"description": "The source is fetched in the background: the job, and where to watch it"}},
    )
    async def register(request: Request) -> JSONResponse:
        principal = await principal_of(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            async with _bounded(request, settings.max_upload_bytes).form(
                max_files=_MAX_FORM_FILES, max_fields=8, max_part_size=_MAX_MANIFEST_BYTES
            ) as form:
                manifest, files = await _parts(form)
                return JSONResponse(show(await admin.register_upload(manifest, files, principal.key_id)), 201)
        if kind != "application/json":
            raise BadRequest(
                "Send the manifest as application/json, or multipart/form-data with 'manifest' and 'files'."
            )
        raw = await read_body(request.headers, request.receive, settings.max_body_bytes)
        manifest = parse_manifest(raw)
        if manifest.source is not None and manifest.source.is_remote:
            job = admin.register_remote(manifest, principal.key_id)
            return JSONResponse({"job": job.show(), "status_url": f"/admin/jobs/{job.job_id}"}, 202)
        return JSONResponse(show(await admin.register_path(manifest, principal.key_id)), 201)

    @router.post("/adapters/compose", status_code=201, summary="Merge experts into an ordinary adapter and register it")
    async def compose_adapter(request: Request) -> dict[str, Any]:
        principal = await principal_of(request)
        raw = await read_body(request.headers, request.receive, settings.max_body_bytes)
        return show(await admin.compose(validated(ComposeOrder, raw), principal))

    @router.get("/adapters", summary="List adapters: the active ones, or those in other states")
    async def list_adapters(request: Request, state: StateFilter = "active") -> dict[str, Any]:
        await principal_of(request)
        wanted = tuple(AdapterState) if state == "all" else (AdapterState(state),)
        return {"object": "list", "data": [show(record) for record in await library.list(*wanted)]}

    @router.get("/adapters/{ref}", summary="Show an adapter by name or name@version, with its examples")
    async def show_adapter(ref: str, request: Request) -> dict[str, Any]:
        await principal_of(request)
        record = await library.find(ref)
        return show(record) | {"examples": list(record.examples)}

    @router.put("/adapters/{ref}/examples", summary="Replace an adapter's example prompts")
    async def put_examples(ref: str, request: Request) -> JSONResponse:
        principal = await principal_of(request)
        body = _json(await read_body(request.headers, request.receive, settings.max_body_bytes))
        examples = body.get("examples") if isinstance(body, dict) else body
        if not isinstance(examples, list):
            raise BadRequest("Send {'examples': ['prompt', …]}.", param="examples")
        record = await admin.set_examples(ref, examples, principal.key_id)
        return JSONResponse(show(record) | {"examples": list(record.examples)})

    return router


def show(record: AdapterRecord) -> dict[str, Any]:
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
        "report": record.report,
    }


async def _parts(form: FormData) -> tuple[Manifest, list[UploadFile]]:
    manifest = form.get("manifest")
    if isinstance(manifest, UploadFile):
        raw: str | bytes = await manifest.read(_MAX_MANIFEST_BYTES)
    elif isinstance(manifest, str):
        raw = manifest
    else:
        raise BadRequest("The part 'manifest' is missing: JSON with name, card and examples.", param="manifest")
    files = [part for part in form.getlist("files") if isinstance(part, UploadFile)]
    if not files:
        raise BadRequest("The part 'files' is missing: an archive, or the adapter's two files.", param="files")
    return parse_manifest(raw), files


def _tenant_of(sources: Iterable[AdapterRecord]) -> str | None:
    """Whose a merge of these is; raises BadRequest if they are of several tenants."""
    tenants = sorted({record.card.tenant for record in sources if record.card.tenant})
    if len(tenants) > 1:
        raise BadRequest(
            f"These experts belong to the tenants {', '.join(tenants)}: say whose the result is (card.tenant; '' for "
            "everybody).",
            param="card.tenant",
        )
    return tenants[0] if tenants else None


def _stage(files: list[UploadFile], staging: Path) -> Path:
    """Write uploaded files into a new folder; returns the archive, or the folder of loose files."""
    staging.mkdir(parents=True)
    if len(files) == 1 and files[0].filename not in _ADAPTER_FILES:
        archive = staging / "archive"
        _copy(files[0], archive)
        return archive
    folder = staging / "files"
    folder.mkdir()
    for file in files:
        name = file.filename or ""
        if not _SAFE_FILE_NAME.fullmatch(name) or (folder / name).exists():
            shown = ascii(name[:100])
            problem = {"where": f"files: {shown}", "what": "a bad or repeated file name", "fix": "Rename the file."}
            raise AdapterRefused(f"The upload has a file with a bad or repeated name: {shown}.", problems=(problem,))
        _copy(file, folder / name)
    return folder


def _copy(file: UploadFile, target: Path) -> None:
    with target.open("xb") as out:
        shutil.copyfileobj(file.file, out, 1 << 20)


def _bounded(request: Request, max_bytes: int) -> Request:
    """The same request, whose body ends with BodyTooLarge once it exceeds `max_bytes`."""
    num_bytes = 0

    async def receive() -> Message:
        nonlocal num_bytes
        message = await request.receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > max_bytes:
            raise BodyTooLarge(f"The upload is larger than {max_bytes} bytes (setting max_upload_bytes).")
        return message

    return Request(request.scope, receive)


def _json(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not valid JSON: {error}.") from None
