"""Fetching objects from S3, Google Cloud Storage and Azure through fsspec's drivers.

Only a bucket and a key in plain letters come here, never a URL: nothing of fsspec's own URL reading (chains, caches,
local files) is reachable. Drivers connect by themselves, to their cloud or to the ``endpoint_url`` that the operator
gave; without credentials they ask anonymously, so that the machine's own role is used only if the operator says so.
Objects are read in ranges, so that a download can be ended and taken up again.
"""

from __future__ import annotations

import asyncio
import importlib.util
import time
from collections.abc import Callable
from typing import Any

from adapters_registry.disk.uncancelled import in_thread
from adapters_registry.errors import BadSource, Problem
from server.sources.http import Progress
from server.sources.locations import Location
from server.sources.partial import PartialFile, Version

_DRIVERS = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs"}
_ANONYMOUS: dict[str, dict[str, Any]] = {"s3": {"anon": True}, "gs": {"token": "anon"}, "az": {"anon": True}}
_STEP_BYTES = 8 << 20
_STEP_S = 300.0
_MAX_S = 2 * 3600.0

OpenFileSystem = Callable[[str, dict[str, Any]], Any]
"""Makes fsspec's file system of a scheme with a driver's options."""


def check_driver(scheme: str) -> None:
    """Raise BadSource if the scheme's driver is not installed."""
    driver = _DRIVERS[scheme]
    if importlib.util.find_spec("fsspec") is None or importlib.util.find_spec(driver) is None:
        fix = "Install it with: pip install 'moergate[sources]'"
        raise BadSource([Problem("source.url", f"{scheme}:// needs the package {driver}, which is not installed", fix)])


def open_filesystem(scheme: str, options: dict[str, Any]) -> Any:
    """fsspec's file system; a fresh one, so that no secret stays in a cache."""
    check_driver(scheme)
    import fsspec

    return fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False, **options)


class ObjectFetcher:
    """Fetches objects.

    Args:
        open_filesystem: Makes the file system of a scheme.
    """

    def __init__(self, open_filesystem: OpenFileSystem = open_filesystem) -> None:
        self._open = open_filesystem

    async def download(
        self, location: Location, part: PartialFile, progress: Progress, options: dict[str, Any] | None
    ) -> int:
        """Fetch an object, or the rest of it; returns its size.

        Args:
            location: Bucket and key.
            part: Where it goes.
            progress: Told after each step.
            options: The driver's, from the credentials; None asks anonymously.

        Raises:
            BadSource, StorageFull, StorageUnwritable.
        """
        given = _ANONYMOUS[location.scheme] if options is None else options
        key = f"{location.host}{location.path}"
        until = time.monotonic() + _MAX_S
        try:
            store = await in_thread(self._open, location.scheme, given)
            version = _version(location, await _ask(store.info, key))
            if (version.total or 0) > part.max_bytes:
                what = f"{part.name} has more than the {part.max_bytes} bytes allowed"
                raise _bad(location, what, "Use a smaller adapter.")
            known, size = await in_thread(part.known, str(location))
            if known is None or not known.is_same(version):
                await in_thread(part.begin, version)
                size = 0
            while size < (version.total or 0):
                progress(size, version.total or 0)
                end = min(size + _STEP_BYTES, version.total or 0)
                piece = await _ask(store.cat_file, key, start=size, end=end)
                if len(piece) != end - size or time.monotonic() > until:
                    raise _bad(location, "sent another size than it has, or took too long", _AGAIN)
                await in_thread(part.append, piece)
                size = end
            if not version.is_same(_version(location, await _ask(store.info, key))):
                raise _bad(location, "was changed during the download", _AGAIN)
            progress(size, size)
            return await in_thread(part.finish, version)
        except Exception as error:
            if not _is_the_drivers(error):
                raise
            raise _explained(location, error) from None


_AGAIN = "Send the request again."


async def _ask(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Let a driver do one thing, for a bounded time; its thread is left to itself after that."""
    async with asyncio.timeout(_STEP_S):
        return await asyncio.to_thread(call, *args, **kwargs)


def _version(location: Location, info: dict[str, Any]) -> Version:
    """An object as its driver describes it; each driver has its own words."""
    if info.get("type") != "file" or not isinstance(info.get("size"), int):
        raise FileNotFoundError
    words = {key.lower(): info[key] for key in info}
    tag = words.get("etag") or words.get("md5hash") or words.get("md5") or ""
    changed = next(
        (words[k] for k in ("lastmodified", "last_modified", "updated", "mtime", "created") if words.get(k)), ""
    )
    return Version(str(location), str(tag)[:200], str(changed)[:100], info["size"])


def _is_the_drivers(error: Exception) -> bool:
    """Whether an error is one of a driver's many, and not ours or our caller's."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] not in (
        "adapters_registry",
        "routers",
        "server",
    )


def _explained(location: Location, error: Exception) -> BadSource:
    """By type: what drivers say may hold parts of the credentials."""
    if isinstance(error, FileNotFoundError):
        return _bad(location, "is not there, or may not be seen", "Correct the address, or name credentials.")
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        return _bad(location, "refuses the request", "Name credentials that may read it.")
    return _bad(location, f"could not be read ({type(error).__name__})", _AGAIN)


def _bad(location: Location, what: str, fix: str) -> BadSource:
    return BadSource([Problem(str(location), what, fix)])
