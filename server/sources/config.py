"""The settings of sources: what may be read, with which secrets, and whose signatures count."""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from adapters_registry.errors import BadSource
from server.sources.locations import HTTP, AllowList, Location, parse_location

PUBLIC_HUB = "https://huggingface.co"
_SECRET = re.compile(r"secret|token|passw|sas|connection_string|credential|(^|_)key$", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Credential(BaseModel):
    """A secret that manifests may name, without ever holding it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    use_for: list[str] = Field(
        min_length=1, description="Patterns, as in urls, of what it may be sent to; nothing else gets it."
    )
    env: str | None = Field(default=None, description="The environment variable that holds the secret.")
    file: Path | None = Field(default=None, description="The file that holds it; read anew for each download.")
    options: dict[str, str | bool | int] = Field(
        default_factory=dict, description="What an object store's driver needs besides, such as endpoint_url."
    )

    @field_validator("use_for")
    @classmethod
    def _patterns(cls, value: list[str]) -> list[str]:
        return _checked(value)

    @field_validator("options")
    @classmethod
    def _nothing_secret(cls, value: dict[str, str | bool | int]) -> dict[str, str | bool | int]:
        for name in value:
            if _SECRET.search(name):
                raise ValueError(f"{name!r} belongs into the secret that env or file names, not into the settings")
        return value

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.env and self.file:
            raise ValueError("give env or file, not both")
        if not (self.env or self.file) and any(pattern.startswith(("http", "hub:")) for pattern in self.use_for):
            raise ValueError("for http, https and hub it needs env or file: where the secret is")
        return self


class SourceSettings(BaseModel):
    """Where adapters may be fetched from. Nothing is allowed by default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    urls: list[str] = Field(
        default_factory=list,
        description="What may be read: https://host/folder/ (all below it), s3://bucket/, gs://…, az://…, hub:org/*.",
    )
    private_hosts: list[str] = Field(
        default_factory=list, description="Hosts, by name, that may have private addresses; all others must be public."
    )
    hub_endpoint: str = Field(default=PUBLIC_HUB, description="The hub, or a mirror of it.")
    require_signature: bool = Field(default=False, description="Refuse hub and URL sources without a valid signature.")
    keys: dict[str, str] = Field(
        default_factory=dict, description="Ed25519 public keys by name, base64 of the 32 bytes; for signatures."
    )
    credentials: dict[str, Credential] = Field(default_factory=dict, description="Secrets by name, by reference.")

    @field_validator("urls")
    @classmethod
    def _patterns(cls, value: list[str]) -> list[str]:
        return _checked(value)

    @field_validator("private_hosts")
    @classmethod
    def _hosts(cls, value: list[str]) -> list[str]:
        return [_parsed(f"http://{host}/").host for host in value]

    @field_validator("hub_endpoint")
    @classmethod
    def _endpoint(cls, value: str) -> str:
        location = _parsed(value)
        if location.scheme not in HTTP:
            raise ValueError("must begin with https:// or http://")
        return str(location).rstrip("/")

    @field_validator("keys")
    @classmethod
    def _public_keys(cls, value: dict[str, str]) -> dict[str, str]:
        for name, key in value.items():
            try:
                is_key = len(base64.b64decode(key, validate=True)) == 32
            except (binascii.Error, ValueError):
                is_key = False
            if not is_key or not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not a plain name with the base64 of an Ed25519 public key's 32 bytes")
        return value

    @model_validator(mode="after")
    def _signatures_can_be_checked(self) -> Self:
        if self.require_signature and not self.keys:
            raise ValueError("require_signature needs a key in keys")
        return self


def _checked(patterns: list[str]) -> list[str]:
    try:
        AllowList(patterns)
    except BadSource as error:
        raise ValueError(error.message) from None
    return patterns


def _parsed(text: str) -> Location:
    try:
        return parse_location(text, "it")
    except BadSource as error:
        raise ValueError(error.message) from None
