"""Fetching files over HTTP from servers that may be hostile.

Every hop of a redirect is judged like the first one: scheme, allow-list, address. Sizes are bounds, not claims to be
believed; a transfer that stalls or crawls is ended; one that broke off goes on where it ended, if the server still has
the same version. Proxies, cookies, decompression and passwords of the environment are not used. Errors are texts of
our own: what libraries say of a failure may hold a URL with somebody's secret.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urljoin

import aiohttp
from aiohttp.abc import AbstractResolver
from pydantic import SecretStr
from yarl import URL

from adapters_registry.errors import BadSource, Problem
from server.sources.addresses import CheckedResolver, check_host
from server.sources.locations import HTTP, Location, parse_redirect
from server.sources.partial import PartialFile, Version
from server.sources.unbroken import in_thread

Progress = Callable[[int, int], None]
"""Told how many bytes are here, and how many there will be (0: not known); may raise to end the work."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_PIECE_BYTES = 1 << 20


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


class _BrokenOff(Exception):
    """An attempt failed in a way that another one may not; the text says how."""


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
                    except _BrokenOff as broken:
                        what = str(broken)
        except TimeoutError:
            what = f"it took longer than {self._bounds.total_s:.0f} s"
        raise _bad(route.location, what, "Send the request again: it goes on where this one ended.")

    async def read(self, route: Route, max_bytes: int) -> bytes:
        """A short answer as bytes. Raises BadSource."""
        try:
            async with asyncio.timeout(self._bounds.read_s), self._session() as session:
                async with self._open(session, route, {}) as response:
                    _expect(response.status, (200,), route.location)
                    content = await response.content.read(max_bytes + 1)
                    while len(content) <= max_bytes and (more := await response.content.read(max_bytes + 1)):
                        content += more
        except (TimeoutError, aiohttp.ClientError, OSError, _BrokenOff) as error:
            raise _bad(route.location, _reason(error), "Try again in a moment.") from None
        if len(content) > max_bytes:
            raise _bad(route.location, f"answers with more than {max_bytes} bytes", "Use a smaller repository.")
        return content

    async def _attempt(
        self, session: aiohttp.ClientSession, route: Route, part: PartialFile, progress: Progress
    ) -> int:
        known, size = await asyncio.to_thread(part.known, str(route.location))
        try:
            async with self._open(session, route, _conditions(known, size)) as response:
                if known is not None and response.status == 304 and size == known.total:
                    progress(size, size)
                    return size
                if known is not None and response.status in (206, 304, 416):
                    if not _continues(response, known, size):
                        await in_thread(part.path.unlink, True)  # start from nothing at the next attempt
                        raise _BrokenOff("it has another version of the file, or sent another part than was asked for")
                    return await self._receive(response, part, known, size, progress, route.location)
                _expect(response.status, (200,), route.location)
                version = _version(response, route.location)
                if version.total is not None and version.total > part.max_bytes:
                    raise _too_large(route.location, part)
                await in_thread(part.begin, version)
                return await self._receive(response, part, version, 0, progress, route.location)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _BrokenOff(_reason(error)) from None

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
                    raise _too_large(location, part)
                waiting += piece
                if len(waiting) >= _PIECE_BYTES:
                    full, waiting = bytes(waiting), bytearray()
                    await in_thread(part.append, full)
                progress(size, version.total or 0)
                window_bytes += len(piece)
                if (elapsed_s := time.monotonic() - window_began) > self._bounds.rate_window_s:
                    if window_bytes < self._bounds.min_rate * elapsed_s:
                        raise _bad(location, f"sends less than {self._bounds.min_rate:.0f} bytes a second", _FASTER)
                    window_began, window_bytes = time.monotonic(), 0
        finally:
            if waiting and size <= part.max_bytes:
                await in_thread(part.append, bytes(waiting))
        if version.total is not None and size != version.total:
            raise _BrokenOff(f"it sent {size} of {version.total} bytes")
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
                        raise _bad(location, "sends the file compressed, unasked", "Serve the file as it is.")
                    yield response
                    return
                target = _target(location, response.headers.get("location", ""))
            if not route.may_visit(target):
                fix = f"Add {target.origin}/ to sources.urls, if that is right."
                raise _bad(location, f"redirects to {target.origin}, which is not allowed", fix)
            token = token if target.origin == location.origin else None
            location = target
        raise _bad(route.location, f"redirects more than {self._bounds.max_redirects} times", "Name the last URL.")

    def _check_token(self, location: Location, token: SecretStr | None) -> None:
        if token is not None and location.scheme != "https" and location.host not in self._private_hosts:
            raise _bad(location, "would get the credentials in the clear", "Use https.")

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


_FASTER = "Put the file where it can be read faster."


def _url(location: Location) -> URL:
    return URL(f"{location}?{location.query}" if location.query else str(location), encoded=True)


def _target(location: Location, header: str) -> Location:
    """Where a redirect leads. Raises BadSource."""
    where = f"the redirect of {location.origin}"
    try:
        joined = urljoin(str(location), header)
    except ValueError:
        joined = ""
    target = parse_redirect(joined, where)
    if target.scheme not in HTTP:
        raise _bad(location, f"redirects to {target.scheme}, which is not HTTP", "Name the last URL.")
    if location.scheme == "https" and target.scheme == "http":
        raise _bad(location, "redirects from https to http", "Name a URL that stays with https.")
    return target


def _conditions(known: Version | None, size: int) -> dict[str, str]:
    """Headers that ask for the rest of a known version, or whether it is still the one that is here as a whole."""
    if known is None or size == 0:
        return {}
    if size == known.total:
        return {"if-none-match": known.etag} if known.etag else {"if-modified-since": known.modified}
    return {"range": f"bytes={size}-", "if-range": known.etag or known.modified}


def _continues(response: aiohttp.ClientResponse, known: Version, size: int) -> bool:
    """Whether an answer is exactly the rest of what is here."""
    found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if response.status != 206 or found is None:
        return False
    first, last, total = map(int, found.groups())
    now = Version(known.url, _etag(response), response.headers.get("last-modified", "")[:100], total)
    if (first, last) != (size, total - 1) or response.content_length not in (None, total - size):
        return False
    return known.is_same(now)


def _version(response: aiohttp.ClientResponse, location: Location) -> Version:
    modified = response.headers.get("last-modified", "")[:100]
    return Version(str(location), _etag(response), modified, response.content_length)


def _etag(response: aiohttp.ClientResponse) -> str:
    tag = response.headers.get("etag", "")
    return "" if tag.startswith("W/") or len(tag) > 200 else tag


def _expect(status: int, wanted: tuple[int, ...], location: Location) -> None:
    """Raise BadSource or _BrokenOff for any other status."""
    if status in wanted:
        return
    if status in _AGAIN:
        raise _BrokenOff(f"it answers with status {status}")
    if status in (401, 403):
        raise _bad(location, f"refuses the request (status {status})", "Name credentials that may read it.")
    if status in (404, 410):
        raise _bad(location, f"has no such file (status {status})", "Correct the address, repository or revision.")
    raise _bad(location, f"answers with status {status}", "Correct the address.")


def _reason(error: Exception) -> str:
    """What happened, by type: a library's own text may hold a URL with a secret."""
    if isinstance(error, _BrokenOff):
        return str(error)
    if isinstance(error, TimeoutError):
        return "it did not send anything for too long"
    if isinstance(error, (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError)):
        return "its certificate is not trusted"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name cannot be resolved"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the connection broke off in the file"
    return f"the connection failed ({type(error).__name__})"


def _too_large(location: Location, part: PartialFile) -> BadSource:
    return _bad(location, f"{part.name} has more than the {part.max_bytes} bytes allowed", "Use a smaller adapter.")


def _bad(location: Location, what: str, fix: str) -> BadSource:
    return BadSource([Problem(str(location) if location.is_plain else location.origin, what, fix)])
