"""URLs as parts, and the list of those that may be read.

There is one reading of a URL: ours. It takes only plain text (no user, no query, no escapes, no dots that climb, no
letters outside ASCII), so that no other parser can see another host or path in it, and everything is compared part by
part. What a server redirects to may have a query and escapes; then only its host can be allowed, not its path.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from adapters_registry.errors import BadSource, Problem
from adapters_registry.sources import HubSource

HTTP = frozenset({"https", "http"})
OBJECT_STORES = frozenset({"s3", "gs", "az"})
HUB_HOSTS = ("huggingface.co", "hf.co")
"""The public hub answers from these and hosts below them (its CDN); it may redirect there, over https."""

_DEFAULT_PORTS = {"https": 443, "http": 80}
_MAX_CHARS = 2048
_MAX_REDIRECT_CHARS = 8192
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?(?:#.*)?"
)
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_PLAIN_PATH = re.compile(r"/|(/[A-Za-z0-9._~+,=@-]+)+/?")
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_HUB_PATTERN = re.compile(r"hub:(\*|(?P<org>[A-Za-z0-9][A-Za-z0-9._-]*)/(?P<name>\*|[A-Za-z0-9][A-Za-z0-9._-]*))")


@dataclass(frozen=True, slots=True)
class Location:
    """A URL in parts. `port` is None for a scheme's default; `path` begins with ``/``; `query` never shows."""

    scheme: str
    host: str
    port: int | None
    path: str
    query: str = ""

    def __str__(self) -> str:
        """Without the query, which may hold somebody's secret."""
        return f"{self.origin}{self.path}"

    @property
    def origin(self) -> str:
        """Scheme, host and port, as in a browser's rule."""
        return f"{self.scheme}://{self.host}" + (f":{self.port}" if self.port else "")

    @property
    def is_plain(self) -> bool:
        """Whether every reader sees the same path in it."""
        return not self.query and _is_plain_path(self.path)

    def below(self, name: str) -> Location:
        """A file in this folder."""
        return Location(self.scheme, self.host, self.port, self.path + name)


def parse_location(text: str, where: str = "source.url") -> Location:
    """Read a URL of a manifest or of the settings. Raises BadSource, which does not repeat the text."""
    found = _parts(text, _MAX_CHARS, where)
    if found.query or "?" in text or "#" in text:
        fix = "Name the file alone; a key for reading it belongs into sources.credentials of the settings."
        raise _bad(where, "has a query or a fragment", fix)
    if not found.is_plain:
        what = (
            "has a path with empty parts, '.', '..', escapes, or signs other than letters, digits and . _ ~ + , = @ -"
        )
        raise _bad(where, what, "Rename the file or folder.")
    return found


def parse_redirect(text: str, where: str) -> Location:
    """Read what a server redirects to, already joined with where it came from. Raises BadSource."""
    return _parts(text, _MAX_REDIRECT_CHARS, where)


def _parts(text: str, max_chars: int, where: str) -> Location:
    if len(text) > max_chars:
        raise _bad(where, f"has more than {max_chars} characters", "Name the file by a shorter URL.")
    if not _VISIBLE.fullmatch(text) or "\\" in text:
        raise _bad(where, "has blanks, backslashes or letters outside ASCII", "Write the host in its xn-- form.")
    match = _URL.fullmatch(text)
    if match is None:
        raise _bad(where, "is not scheme://host/path without a user", "Write, for example, https://host/folder/")
    scheme = match["scheme"].lower()
    if scheme not in HTTP | OBJECT_STORES:
        raise _bad(where, "has another scheme than https, http, s3, gs and az", "Use one of these, or path or hub.")
    port = int(match["port"]) if match["port"] else None
    if scheme in OBJECT_STORES:
        if port is not None or not _BUCKET.fullmatch(match["host"]):
            raise _bad(where, "has no bucket or container name where it must be", f"Write {scheme}://bucket/path")
        return Location(scheme, match["host"], None, match["path"] or "/", match["query"] or "")
    if port is not None and not 0 < port < 65536:
        raise _bad(where, "has a port that does not exist", "Use one from 1 to 65535.")
    port = None if port == _DEFAULT_PORTS[scheme] else port
    return Location(scheme, _host(match["host"], where), port, match["path"] or "/", match["query"] or "")


def _host(text: str, where: str) -> str:
    """A host name in lower case, or an address in its one normal form."""
    host = text.lower()
    try:
        if host.startswith("["):
            return f"[{ipaddress.IPv6Address(host[1:-1])}]"
        if host.rpartition(".")[2].isdigit() or host.rpartition(".")[2].startswith("0x"):
            return str(ipaddress.IPv4Address(host))
    except ValueError:
        raise _bad(where, "has a host that is neither a name nor an address", "Write addresses as 192.0.2.1") from None
    if len(host) > 253 or not all(map(_LABEL.fullmatch, host.split("."))):
        raise _bad(where, "has a host that is no name", "Use letters, digits and '-', with dots between.")
    return host


def _is_plain_path(path: str) -> bool:
    return bool(_PLAIN_PATH.fullmatch(path)) and not any(part in (".", "..") for part in path.split("/"))


@dataclass(frozen=True, slots=True)
class HubPattern:
    """``hub:*``, ``hub:org/*`` or ``hub:org/name``; None stands for any."""

    org: str | None
    name: str | None

    def covers(self, hub: HubSource) -> bool:
        """Whether it allows this repository."""
        org, _, name = hub.repo.partition("/")
        return self.org in (None, org) and self.name in (None, name)


class AllowList:
    """Places that may be read.

    A pattern that ends with ``/`` covers everything below it, one that does not covers that file alone. Raises
    BadSource for a pattern that cannot be understood.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._locations: list[Location] = []
        self._hub: list[HubPattern] = []
        for pattern in patterns:
            if pattern.startswith("hub:"):
                self._hub.append(_hub_pattern(pattern))
            else:
                self._locations.append(parse_location(pattern, f"the pattern {pattern!r}"))

    def allows(self, location: Location) -> bool:
        """Whether this place is on the list."""
        return any(_covers(pattern, location) for pattern in self._locations)

    def allows_hub(self, hub: HubSource) -> bool:
        """Whether this repository is on the list."""
        return any(pattern.covers(hub) for pattern in self._hub)


def is_hub_host(location: Location) -> bool:
    """Whether the public hub may redirect there."""
    below = tuple(f".{host}" for host in HUB_HOSTS)
    is_named = location.host in HUB_HOSTS or location.host.endswith(below)
    return is_named and location.scheme == "https" and location.port is None


def _covers(pattern: Location, location: Location) -> bool:
    if pattern.origin != location.origin:
        return False
    if pattern.path == "/":
        return True
    if not location.is_plain:
        return False
    return location.path == pattern.path or (pattern.path.endswith("/") and location.path.startswith(pattern.path))


def _hub_pattern(text: str) -> HubPattern:
    match = _HUB_PATTERN.fullmatch(text)
    if match is None:
        raise _bad(f"the pattern {text!r}", "is no pattern for the hub", "Write hub:org/name, hub:org/* or hub:*")
    return HubPattern(match["org"], None if match["name"] in (None, "*") else match["name"])


def _bad(where: str, what: str, fix: str) -> BadSource:
    return BadSource([Problem(where, what, fix)])
