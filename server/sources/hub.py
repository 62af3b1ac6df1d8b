"""The hub: what a revision stands for, and where its files are.

The revision becomes a commit first, and the files are asked for by that commit: a branch that moves during a download
cannot mix two versions. What the hub says of a large file's SHA-256 is compared with what came.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote

import orjson
from pydantic import SecretStr

from adapters_registry.disk.layout import SHA256
from adapters_registry.errors import BadSource, Problem
from adapters_registry.sources import HubSource
from server.sources.config import PUBLIC_HUB
from server.sources.http import HttpFetcher, Route
from server.sources.locations import AllowList, Location, is_hub_host, parse_location, parse_redirect

_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAX_ANSWER_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Resolved:
    """A revision at one moment.

    Attributes:
        commit: 40 hex digits.
        sha256: SHA-256 by file name, as far as the hub tells it.
    """

    commit: str
    sha256: dict[str, str]


class Hub:
    """One hub.

    Args:
        endpoint: Its address.
        allowed: Where it may redirect to, besides its own hosts.
        http: What asks.
    """

    def __init__(self, endpoint: str, allowed: AllowList, http: HttpFetcher) -> None:
        self._endpoint = endpoint
        self._origin = parse_location(endpoint).origin
        self._allowed = allowed
        self._http = http

    def may_visit(self, location: Location) -> bool:
        """Whether the hub may redirect there: to itself, to the public hub's CDN if it is that, to what is allowed."""
        if location.origin == self._origin:
            return True
        return (self._endpoint == PUBLIC_HUB and is_hub_host(location)) or self._allowed.allows(location)

    async def resolve(self, hub: HubSource, token: SecretStr | None) -> Resolved:
        """The commit of a revision. Raises BadSource."""
        path = f"{self._endpoint}/api/models/{hub.repo}/revision/{quote(hub.revision, safe='')}?blobs=true"
        content = await self._http.read(Route(parse_redirect(path, "hub"), self.may_visit, token), _MAX_ANSWER_BYTES)
        try:
            answer = orjson.loads(content)
            commit = answer["sha"]
            siblings = answer.get("siblings") or []
            sha256 = {
                file["rfilename"]: file["lfs"]["sha256"]
                for file in siblings
                if isinstance(file.get("lfs"), dict) and SHA256.fullmatch(str(file["lfs"].get("sha256")))
            }
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            commit, sha256 = "", {}
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise _bad(hub, "was not answered with a commit", "Check sources.hub_endpoint and the revision.")
        if _COMMIT.fullmatch(hub.revision) and commit != hub.revision:
            raise _bad(hub, "was answered with another commit", "Check sources.hub_endpoint.")
        return Resolved(commit, sha256)

    def route(self, hub: HubSource, commit: str, name: str, token: SecretStr | None) -> Route:
        """How to ask for a file of a commit."""
        below = f"{hub.subfolder}/" if hub.subfolder else ""
        location = parse_location(f"{self._endpoint}/{hub.repo}/resolve/{commit}/{below}{name}")
        return Route(location, self.may_visit, token)


def _bad(hub: HubSource, what: str, fix: str) -> BadSource:
    return BadSource([Problem(str(hub), what, fix)])
