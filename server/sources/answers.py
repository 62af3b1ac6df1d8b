"""What a server's answer means: another version, the rest of a file, a redirect, a refusal, or nothing that counts.

The judgements of `http`, apart from its requests. Errors are texts of our own, by type and status.
"""

from __future__ import annotations

import re
from urllib.parse import urljoin

import aiohttp

from adapters_registry.errors import BadSource, Problem
from server.sources.locations import HTTP, Location, parse_redirect
from server.sources.partial import PartialFile, Version

_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


class BrokenOff(Exception):
    """An attempt failed in a way that another one may not; the text says how."""


def target_of(location: Location, header: str) -> Location:
    """Where a redirect leads. Raises BadSource."""
    where = f"the redirect of {location.origin}"
    try:
        joined = urljoin(str(location), header)
    except ValueError:
        joined = ""
    target = parse_redirect(joined, where)
    if target.scheme not in HTTP:
        raise bad(location, f"redirects to {target.scheme}, which is not HTTP", "Name the last URL.")
    if location.scheme == "https" and target.scheme == "http":
        raise bad(location, "redirects from https to http", "Name a URL that stays with https.")
    return target


def conditions(known: Version | None, size: int) -> dict[str, str]:
    """Headers that ask for the rest of a known version, or whether it is still the one that is here as a whole."""
    if known is None or size == 0:
        return {}
    if size == known.total:
        return {"if-none-match": known.etag} if known.etag else {"if-modified-since": known.modified}
    return {"range": f"bytes={size}-", "if-range": known.etag or known.modified}


def continues(response: aiohttp.ClientResponse, known: Version, size: int) -> bool:
    """Whether an answer is exactly the rest of what is here."""
    found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if response.status != 206 or found is None:
        return False
    first, last, total = map(int, found.groups())
    now = Version(known.url, _etag(response), response.headers.get("last-modified", "")[:100], total)
    if (first, last) != (size, total - 1) or response.content_length not in (None, total - size):
        return False
    return known.is_same(now)


def version_of(response: aiohttp.ClientResponse, location: Location) -> Version:
    """The file as the server describes it."""
    modified = response.headers.get("last-modified", "")[:100]
    return Version(str(location), _etag(response), modified, response.content_length)


def _etag(response: aiohttp.ClientResponse) -> str:
    tag = response.headers.get("etag", "")
    return "" if tag.startswith("W/") or len(tag) > 200 else tag


def expect(status: int, wanted: tuple[int, ...], location: Location) -> None:
    """Raise BadSource or BrokenOff for any other status."""
    if status in wanted:
        return
    if status in _AGAIN:
        raise BrokenOff(f"it answers with status {status}")
    if status in (401, 403):
        raise bad(location, f"refuses the request (status {status})", "Name credentials that may read it.")
    if status in (404, 410):
        raise bad(location, f"has no such file (status {status})", "Correct the address, repository or revision.")
    raise bad(location, f"answers with status {status}", "Correct the address.")


def reason_of(error: Exception) -> str:
    """What happened, by type: a library's own text may hold a URL with a secret."""
    if isinstance(error, BrokenOff):
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


def too_large(location: Location, part: PartialFile) -> BadSource:
    """The error for more bytes than a file may have."""
    return bad(location, f"{part.name} has more than the {part.max_bytes} bytes allowed", "Use a smaller adapter.")


def bad(location: Location, what: str, fix: str) -> BadSource:
    """The error for a server; the path is shown only if it cannot hold a secret."""
    return BadSource([Problem(str(location) if location.is_plain else location.origin, what, fix)])
