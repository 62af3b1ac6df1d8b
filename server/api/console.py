"""The console's page: static files without data, with headers that let a browser run only these files.

The page is public because it contains no data; the data comes from the admin API, which requires a key. The page's
script sends the key in a header, never as a cookie, so that no other page can make a browser use it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from server.errors import NotFound

PAGE = "index.html"
KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)
"""No inline code, nothing from other origins, no frame around the page, and no text that becomes markup."""

HEADERS = {
    "content-security-policy": "; ".join(POLICY),
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "cache-control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of the page."""

    content: bytes
    kind: str
    etag: str


def read_assets() -> dict[str, Asset]:
    """The page's files by name."""
    assets = {}
    for entry in files("server.console").iterdir():
        kind = KINDS.get(entry.name.rpartition(".")[2])
        if kind:
            content = entry.read_bytes()
            assets[entry.name] = Asset(content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return assets


def console_router() -> APIRouter:
    """Routes under ``/console``; they need no key, and are not part of the API or its document."""
    router = APIRouter(prefix="/console", include_in_schema=False)
    assets = read_assets()

    @router.get("")
    async def page(request: Request) -> Response:
        return _answer(assets[PAGE], request)

    @router.get("/")
    async def without_slash() -> Response:
        return RedirectResponse("../console", 308)

    @router.get("/{name}")
    async def asset(name: str, request: Request) -> Response:
        if name not in assets or name == PAGE:
            raise NotFound("The console has no such file. It is at /console.")
        return _answer(assets[name], request)

    return router


def _answer(asset: Asset, request: Request) -> Response:
    headers = HEADERS | {"etag": asset.etag}
    known = {each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")}
    if asset.etag in known:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, headers=headers, media_type=asset.kind)
