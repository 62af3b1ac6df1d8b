"""The admin API of adapters: register, list, show, and change their examples."""

# No "from __future__ import annotations" here: `BodyOf` takes arguments of the function around a route.

from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.datastructures import FormData, UploadFile
from starlette.types import Message

from adapters_registry.library import Library
from adapters_registry.records import Manifest, parse_manifest
from adapters_registry.states import AdapterState
from server.access.auth import Authenticator
from server.api.guard import BodyOf, Caller, requires
from server.api.incoming import read_body
from server.errors import BadRequest, BodyTooLarge
from server.experts.registration import ComposeRequest, Registrar, UploadedFile, describe_adapter
from server.settings import Settings

_MAX_FORM_FILES = 64
_MAX_MANIFEST_BYTES = 32 << 20

StateFilter = Literal["all", "registered", "validating", "ready", "canary", "active", "draining", "retired", "rejected"]

UPLOAD: dict[str, Any] = {
    "type": "object",
    "required": ["manifest", "files"],
    "properties": {
        "manifest": {"type": "string", "description": "The manifest as JSON."},
        "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
    },
}
"""Schema of an upload, for the OpenAPI document."""


class ExamplesRequest(BaseModel):
    """The body of ``PUT /admin/adapters/{ref}/examples``; a bare array of prompts is accepted, too."""

    model_config = ConfigDict(extra="forbid")

    examples: list[str]


def admin_router(registrar: Registrar, library: Library, authenticator: Authenticator, settings: Settings) -> APIRouter:
    """Routes under ``/admin/adapters`` that register, list and show adapters."""
    router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(requires(authenticator, "admin"))])
    max_bytes, setting = settings.max_body_bytes, "max_body_bytes"

    @router.post(
        "/adapters",
        status_code=201,
        summary="Register an adapter from a folder, an upload, the hub or a URL",
        responses={202: {"description": "The source is fetched in the background: the job, and where to watch it"}},
        openapi_extra={"requestBody": {"content": {"multipart/form-data": {"schema": UPLOAD}}, "required": True}},
    )
    async def register(request: Request, caller: Caller) -> JSONResponse:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            async with _bounded(request, settings.max_upload_bytes).form(
                max_files=_MAX_FORM_FILES, max_fields=8, max_part_size=_MAX_MANIFEST_BYTES
            ) as form:
                manifest, files = await _parts(form)
                record = await registrar.register_upload(manifest, files, caller.key_id)
                return JSONResponse(describe_adapter(record), 201)
        if kind != "application/json":
            raise BadRequest(
                "Send the manifest as application/json, or multipart/form-data with 'manifest' and 'files'."
            )
        manifest = parse_manifest(await read_body(request.headers, request.receive, max_bytes, setting=setting))
        if manifest.source is not None and manifest.source.is_remote:
            job = registrar.register_remote(manifest, caller.key_id)
            return JSONResponse({"job": job.show(), "status_url": f"/admin/jobs/{job.job_id}"}, 202)
        return JSONResponse(describe_adapter(await registrar.register_path(manifest, caller.key_id)), 201)

    @router.post("/adapters/compose", status_code=201, summary="Merge experts into an ordinary adapter and register it")
    async def compose_adapter(
        body: Annotated[ComposeRequest, Depends(BodyOf(ComposeRequest, max_bytes, setting=setting))], caller: Caller
    ) -> dict[str, Any]:
        return describe_adapter(await registrar.compose(body, caller))

    @router.get("/adapters", summary="List adapters: the active ones, or those in another state")
    async def list_adapters(state: StateFilter = "active") -> dict[str, Any]:
        wanted = tuple(AdapterState) if state == "all" else (AdapterState(state),)
        return {"object": "list", "data": [describe_adapter(record) for record in await library.list(*wanted)]}

    @router.get("/adapters/{ref}", summary="Show an adapter by name or name@version, with its examples")
    async def show_adapter(ref: str) -> dict[str, Any]:
        record = await library.find(ref)
        return describe_adapter(record) | {"examples": list(record.examples)}

    @router.put("/adapters/{ref}/examples", summary="Replace an adapter's example prompts")
    async def put_examples(
        ref: str,
        examples: Annotated[
            list[str], Depends(BodyOf(ExamplesRequest, max_bytes, setting=setting, parse=_parse_examples))
        ],
        caller: Caller,
    ) -> JSONResponse:
        record = await registrar.set_examples(ref, examples, caller.key_id)
        return JSONResponse(describe_adapter(record) | {"examples": list(record.examples)})

    return router


async def _parts(form: FormData) -> tuple[Manifest, list[UploadedFile]]:
    manifest = form.get("manifest")
    if isinstance(manifest, UploadFile):
        raw: str | bytes = await manifest.read(_MAX_MANIFEST_BYTES)
    elif isinstance(manifest, str):
        raw = manifest
    else:
        raise BadRequest("The part 'manifest' is missing: JSON with name, card and examples.", param="manifest")
    parts = [part for part in form.getlist("files") if isinstance(part, UploadFile)]
    if not parts:
        raise BadRequest("The part 'files' is missing: an archive, or the adapter's two files.", param="files")
    return parse_manifest(raw), [UploadedFile(part.filename or "", part.file) for part in parts]


def _parse_examples(raw: bytes) -> list[str]:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not valid JSON: {error}.") from None
    examples = body.get("examples") if isinstance(body, dict) else body
    if not isinstance(examples, list):
        raise BadRequest("Send {'examples': ['prompt', …]}.", param="examples")
    return examples


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
