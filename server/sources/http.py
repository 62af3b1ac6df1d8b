"""Fetching files over HTTP from servers that may be hostile.

Every hop of a redirect is judged like the first one: scheme, allow-list, address. Sizes are bounds, not claims to be
believed; a transfer that stalls or crawls is ended; one that broke off goes on where it ended, if the server still has
the same version. Proxies, cookies, decompression and passwords of the environment are not used. Errors are texts of
our own: what libraries say of a failure may hold a URL with somebody's secret.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from aiohttp.abc import AbstractResolver
from pydantic import SecretStr
from yarl import URL

from adapters_registry.disk.uncancelled import in_thread
from server.sources.addresses import CheckedResolver, check_host
from server.sources.answers import (
    BrokenOff,
    bad,
    conditions,
    continues,
    expect,
    reason_of,
    target_of,
    too_large,
    version_of,
)
from server.sources.locations import Location
from server.sources.partial import PartialFile, Version

Progress = Callable[[int, int], None]
"""Told how many bytes are here, and how many there will be (0: not known); may raise to end the work."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PIECE_BYTES = 1 << 20
_FASTER = "Put the file where it can be read faster."


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a server gets.

    Attributes:
        max_redirects: Hops after the first request.
        connect_s, read_s: Longest wait for a connection, and for the next bytes.
        total_s: Longest time for one file, with all attempts.
        min_rate, rate_window_s: Bytes a second, at least, over each such window.
        max_attempts: Times that a transfer that broke off is taken up.
        pause_s: Before the second attempt; twice as long before each further one.
    """

    max_redirects: int = 3
    connect_s: float = 10.0
    read_s: float = 30.0
    total_s: float = 2 * 3600.0
    min_rate: float = 4096.0
    rate_window_s: float = 60.0
    max_attempts: int = 5
    pause_s: float = 0.5


@dataclass(frozen=True, slots=True)
class Route:
    """A request as it may go.

    Attributes:
        location: What to ask for.
        may_visit: Whether a redirect may lead to a place.
        token: Sent as a bearer token to `location`'s origin alone.
    """

    location: Location
    may_visit: Callable[[Location], bool]
    token: SecretStr | None = None


class HttpFetcher:
    """Fetches files; holds no connection between them.

    Args:
        private_hosts: Hosts that may have private addresses.
        resolver: What looks names up; None is the operating system.
        bounds: What a server gets.
        trust: Certificates to believe; None is the operating system's.
    """

    def __init__(
        self,
        private_hosts: Collection[str] = (),
        resolver: AbstractResolver | None = None,
        bounds: Bounds = Bounds(),
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self._private_hosts = frozenset(private_hosts)
        self._resolver = resolver
        self._bounds = bounds
        self._trust = trust

    async def download(self, route: Route, part: PartialFile, progress: Progress) -> int:
        """Fetch a file, or the rest of it; returns its size. Raises BadSource, StorageFull, StorageUnwritable."""
        pause_s = self._bounds.pause_s
        what = "it did not answer"
        try:
            async with asyncio.timeout(self._bounds.total_s), self._session() as session:
                for attempt in range(self._bounds.max_attempts):
                    if attempt:
                        await asyncio.sleep(pause_s)
                        pause_s *= 2
                    try:
                        return await self._attempt(session, route, part, progress)
                    except BrokenOff as broken:
                        what = str(broken)
        except TimeoutError:
            what = f"it took longer than {self._bounds.total_s:.0f} s"
        raise bad(route.location, what, "Send the request again: it goes on where this one ended.")

    async def read(self, route: Route, max_bytes: int) -> bytes:
        """A short answer as bytes. Raises BadSource."""
        try:
            async with asyncio.timeout(self._bounds.read_s), self._session() as session:
                async with self._open(session, route, {}) as response:
                    expect(response.status, (200,), route.location)
                    content = await response.content.read(max_bytes + 1)
                    while len(content) <= max_bytes and (more := await response.content.read(max_bytes + 1)):
                        content += more
        except (TimeoutError, aiohttp.ClientError, OSError, BrokenOff) as error:
            raise bad(route.location, reason_of(error), "Try again in a moment.") from None
        if len(content) > max_bytes:
            raise bad(route.location, f"answers with more than {max_bytes} bytes", "Use a smaller repository.")
        return content

    async def _attempt(
        self, session: aiohttp.ClientSession, route: Route, part: PartialFile, progress: Progress
    ) -> int:
        known, size = await asyncio.to_thread(part.known, str(route.location))
        try:
            async with self._open(session, route, conditions(known, size)) as response:
                if known is not None and response.status == 304 and size == known.total:
                    progress(size, size)
                    return size
                if known is not None and response.status in (206, 304, 416):
                    if not continues(response, known, size):
                        await in_thread(part.path.unlink, True)  # start from nothing at the next attempt
                        raise BrokenOff("it has another version of the file, or sent another part than was asked for")
                    return await self._receive(response, part, known, size, progress, route.location)
                expect(response.status, (200,), route.location)
                version = version_of(response, route.location)
                if version.total is not None and version.total > part.max_bytes:
                    raise too_large(route.location, part)
                await in_thread(part.begin, version)
                return await self._receive(response, part, version, 0, progress, route.location)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise BrokenOff(reason_of(error)) from None

    async def _receive(
        self,
        response: aiohttp.ClientResponse,
        part: PartialFile,
        version: Version,
        size: int,
        progress: Progress,
        location: Location,
    ) -> int:
        """Write the body behind the first `size` bytes, as much as comes; returns the whole size."""
        waiting = bytearray()
        window_began, window_bytes = time.monotonic(), 0
        try:
            while piece := await response.content.read(_PIECE_BYTES):
                size += len(piece)
                if size > part.max_bytes:
                    raise too_large(location, part)
                waiting += piece
                if len(waiting) >= _PIECE_BYTES:
                    full, waiting = bytes(waiting), bytearray()
                    await in_thread(part.append, full)
                progress(size, version.total or 0)
                window_bytes += len(piece)
                if (elapsed_s := time.monotonic() - window_began) > self._bounds.rate_window_s:
                    if window_bytes < self._bounds.min_rate * elapsed_s:
                        raise bad(location, f"sends less than {self._bounds.min_rate:.0f} bytes a second", _FASTER)
                    window_began, window_bytes = time.monotonic(), 0
        finally:
            if waiting and size <= part.max_bytes:
                await in_thread(part.append, bytes(waiting))
        if version.total is not None and size != version.total:
            raise BrokenOff(f"it sent {size} of {version.total} bytes")
        return await in_thread(part.finish, version)

    @asynccontextmanager
    async def _open(
        self, session: aiohttp.ClientSession, route: Route, headers: dict[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer of the last hop; every hop is judged before it is asked."""
        location, token = route.location, route.token
        for _ in range(self._bounds.max_redirects + 1):
            check_host(location.host, self._private_hosts)
            self._check_token(location, token)
            sent = headers | ({"authorization": f"Bearer {token.get_secret_value()}"} if token else {})
            async with session.get(_url(location), headers=sent, allow_redirects=False) as response:
                if response.status not in _REDIRECTS:
                    if response.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
                        raise bad(location, "sends the file compressed, unasked", "Serve the file as it is.")
                    yield response
                    return
                target = target_of(location, response.headers.get("location", ""))
            if not route.may_visit(target):
                fix = f"Add {target.origin}/ to sources.urls, if that is right."
                raise bad(location, f"redirects to {target.origin}, which is not allowed", fix)
            token = token if target.origin == location.origin else None
            location = target
        raise bad(route.location, f"redirects more than {self._bounds.max_redirects} times", "Name the last URL.")

    def _check_token(self, location: Location, token: SecretStr | None) -> None:
        if token is not None and location.scheme != "https" and location.host not in self._private_hosts:
            raise bad(location, "would get the credentials in the clear", "Use https.")

    def _session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            resolver=CheckedResolver(self._private_hosts, self._resolver),
            use_dns_cache=False,
            force_close=True,
            ssl=self._trust or True,
        )
        bounds = self._bounds
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=bounds.connect_s, sock_read=bounds.read_s),
            auto_decompress=False,
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"accept-encoding": "identity", "user-agent": "moergate"},
            read_bufsize=1 << 18,
        )


def _url(location: Location) -> URL:
    return URL(f"{location}?{location.query}" if location.query else str(location), encoded=True)
