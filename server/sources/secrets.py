"""Secrets by reference: found by name when they are needed, given only to the places that they are for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import orjson
from pydantic import SecretStr

from adapters_registry.errors import BadSource, Problem
from adapters_registry.sources import Source
from server.sources.config import Credential
from server.sources.locations import AllowList, Location

_WHERE = "source.credentials"
_MAX_SECRET_BYTES = 64 << 10


class Credentials:
    """The secrets that the gateway is configured with.

    Args:
        settings: By name.
        environ: Where variables are looked up; None is the process's environment.
    """

    def __init__(self, settings: Mapping[str, Credential], environ: Mapping[str, str] | None = None) -> None:
        self._settings = settings
        self._environ = os.environ if environ is None else environ

    def check(self, source: Source, location: Location | None) -> Credential | None:
        """The credential that a source names, if it may be used there; None if it names none. Raises BadSource."""
        if source.credentials is None:
            return None
        known = self._settings.get(source.credentials)
        allowed = AllowList(known.use_for) if known else None
        if known is None or allowed is None:
            raise _bad("names credentials that the gateway does not have", "Configure them in sources.credentials.")
        is_for = allowed.allows_hub(source.hub) if source.hub else location is not None and allowed.allows(location)
        if not is_for:
            raise _bad("names credentials that are not for this place", "Add the place to their use_for.")
        return known

    def token(self, credential: Credential | None) -> SecretStr | None:
        """The secret as a bearer token. Blocks. Raises BadSource."""
        if credential is None:
            return None
        text = self._read(credential)
        if not text.isascii() or not text.isprintable() or " " in text:
            raise _bad("are not usable as a bearer token", "Keep one line of printable ASCII without blanks there.")
        return SecretStr(text)

    def options(self, credential: Credential | None) -> dict[str, Any]:
        """The secret as options of an object store's driver, with the open ones. Blocks. Raises BadSource."""
        if credential is None:
            return {}
        if not (credential.env or credential.file):
            return dict(credential.options)
        try:
            secret = orjson.loads(self._read(credential))
        except orjson.JSONDecodeError:
            secret = None
        if not isinstance(secret, dict):
            raise _bad("are not a JSON object", 'Keep the driver\'s options there, such as {"key": …, "secret": …}.')
        return {**credential.options, **secret}

    def _read(self, credential: Credential) -> str:
        if credential.env:
            text = self._environ.get(credential.env, "")
        elif credential.file:
            try:
                with credential.file.open("rb") as file:
                    text = file.read(_MAX_SECRET_BYTES).decode()
            except (OSError, UnicodeDecodeError):
                text = ""
        if not text.strip():
            raise _bad("are not there now", "Set the variable or write the file that sources.credentials names.")
        return text.strip()


def _bad(what: str, fix: str) -> BadSource:
    return BadSource([Problem(_WHERE, what, fix)])
