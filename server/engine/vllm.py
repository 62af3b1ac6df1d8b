"""Client of a vLLM server over HTTP, local or remote.

All engines share the one HTTP session of the process. The client passes bytes on; it does not understand bodies.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping

import aiohttp
from yarl import URL

from adapters_registry.disk.layout import recipe_digest
from adapters_registry.disk.recipe_texts import RecipeTexts
from server.engine.base import EngineHealth, EngineRequest, Residency
from server.engine.errors import EngineBroke, EngineUnreachable
from server.engine.recipes import LONG_TEXT_CHARS, Base, Recipe

_RUNNING = re.compile(r"^vllm:num_requests_running(?:\{[^}]*\})? ([0-9.e+]+)", re.MULTILINE)
_WAITING = re.compile(r"^vllm:num_requests_waiting(?:\{[^}]*\})? ([0-9.e+]+)", re.MULTILINE)
_LORAS = re.compile(r'^vllm:lora_requests_info\{[^}]*running_lora_adapters="([^"]*)"[^}]*\} ([0-9.e+]+)', re.MULTILINE)
_PLUGIN = re.compile(r"^moergate_plugin_info\{[^}]*\} 1", re.MULTILINE)
_RESIDENT = re.compile(r'^moergate_expert_resident\{expert="([^"]*)"\} 1', re.MULTILINE)
MAX_ATTEMPTS = 3
"""To hand a request to a server, while the connection breaks before the answer's first byte."""

_PROBE_TIMEOUT = aiohttp.ClientTimeout(total=5)


class VllmResponse:
    """An answer of a vLLM server under way; see `server.engine.base.EngineResponse`."""

    def __init__(self, response: aiohttp.ClientResponse, model: str) -> None:
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self.model = model

    async def chunks(self) -> AsyncIterator[bytes]:
        """Body bytes as they arrive."""
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, ConnectionError) as error:
            raise _broke(error) from error

    async def read(self) -> bytes:
        """The whole body."""
        try:
            return await self._response.read()
        except (aiohttp.ClientError, ConnectionError) as error:
            raise _broke(error) from error

    def close(self) -> None:
        """End the connection, or give it back if the body was read."""
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


def _is_worth_another(error: Exception, attempt: int) -> bool:
    """Whether a request that got no answer may be handed over once more: the fault may be ours or the connection's."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):  # nothing was sent; it may be we who had no processor time
        return attempt == 1
    # A kept-alive connection that the server closed in the same moment, or many of them if we were held up for longer
    # than it keeps idle ones: a fresh one tells the truth.
    is_broken = isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError | ConnectionError)
    return is_broken and not isinstance(error, aiohttp.ClientConnectorError) and attempt < MAX_ATTEMPTS


def _broke(error: Exception) -> EngineBroke:
    return EngineBroke(f"The engine broke off its answer ({type(error).__name__}).")


class VllmEngine:
    """One vLLM server.

    Args:
        url: Its root, without a trailing slash.
        session: The process's HTTP session.
        key: Its API key, if it wants one.
        base_model: Its name for the base; None asks the server at the first health check.
        texts: Where long recipes are kept for it; without, they go to it whole.
    """

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        *,
        key: str | None = None,
        base_model: str | None = None,
        texts: RecipeTexts | None = None,
    ) -> None:
        self.url = url
        self._session = session
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._base_model = base_model
        self._texts = texts
        self._urls: dict[str, URL] = {}

    async def forward(self, request: EngineRequest) -> VllmResponse:
        """See `server.engine.base.Engine`."""
        model = await self._name_of(request.recipe)
        headers = {"content-type": "application/json", "x-request-id": request.request_id, **self._headers}
        if request.trace is not None:
            headers.update(request.trace.headers(self.url + request.path))
        body = request.body.with_model(model)
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                response = await self._session.post(
                    self._url_of(request.path), data=body, headers=headers, allow_redirects=False
                )
                return VllmResponse(response, model)
            except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
                if not _is_worth_another(error, attempt):
                    raise EngineUnreachable(f"{self.url}: {error or type(error).__name__}") from error
        raise AssertionError("unreachable")

    async def health(self) -> EngineHealth:
        """Ready once ``/health`` answers 200 and the base's name is known."""
        try:
            async with self._session.get(
                self.url + "/health", headers=self._headers, timeout=_PROBE_TIMEOUT
            ) as response:
                if response.status != 200:
                    return EngineHealth(False, f"/health answers {response.status}")
            if self._base_model is None:
                return await self._ask_base_model()
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            return EngineHealth(False, f"not reachable ({type(error).__name__})")
        return EngineHealth(True)

    async def residency(self) -> Residency:
        """Read the server's own metrics."""
        try:
            async with self._session.get(
                self.url + "/metrics", headers=self._headers, timeout=_PROBE_TIMEOUT
            ) as response:
                text = await response.text()
        except (aiohttp.ClientError, ConnectionError, TimeoutError, UnicodeDecodeError):
            return Residency()
        has_plugin = _PLUGIN.search(text) is not None
        newest = max(_LORAS.findall(text), key=lambda found: float(found[1]), default=("", ""))
        return Residency(
            experts=frozenset(_RESIDENT.findall(text) if has_plugin else filter(None, newest[0].split(","))),
            has_plugin=has_plugin,
            num_running=round(sum(map(float, _RUNNING.findall(text)))),
            num_waiting=round(sum(map(float, _WAITING.findall(text)))),
        )

    async def unload(self, expert_id: str) -> None:
        """Tell the server to forget an expert; a server that does not have it, or no such route, is no fault."""
        try:
            async with self._session.post(
                self.url + "/v1/unload_lora_adapter",
                json={"lora_name": expert_id},
                headers=self._headers,
                timeout=_PROBE_TIMEOUT,
            ) as response:
                await response.read()
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            return

    async def _ask_base_model(self) -> EngineHealth:
        async with self._session.get(
            self.url + "/v1/models", headers=self._headers, timeout=_PROBE_TIMEOUT
        ) as response:
            if response.status == 401:
                return EngineHealth(False, "the engine refuses our key; set engine_key")
            listing = await response.json(content_type=None)
        roots = [entry["id"] for entry in listing.get("data", []) if not entry.get("parent")]
        if not roots:
            return EngineHealth(False, "/v1/models lists no base model")
        self._base_model = roots[0]
        return EngineHealth(True)

    def _url_of(self, path: str) -> URL:
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = URL(self.url + path, encoded=True)
        return url

    async def _name_of(self, recipe: Recipe) -> str:
        if isinstance(recipe, Base):
            return self._base_model or "base"
        text = str(recipe)
        if len(text) <= LONG_TEXT_CHARS or self._texts is None:
            return text
        digest = recipe_digest(text)
        if not self._texts.knows(digest):
            await asyncio.to_thread(self._texts.put, text)
        return f"set:{digest}"
