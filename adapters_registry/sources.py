"""Where an adapter comes from: what a manifest may name, and the provenance that is recorded afterwards.

This module checks the form only. `server.sources` decides whether a location may be read.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, StringConstraints, model_validator

from adapters_registry.disk.layout import SHA256

_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
_Sha256 = Annotated[str, StringConstraints(pattern=rf"^{SHA256.pattern}$")]
_Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$", max_length=4096)]  # PostgreSQL cannot store a NUL
_Place = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$", min_length=1, max_length=4096)]
_Repo = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")]
_Words = r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*"
_Revision = Annotated[str, StringConstraints(pattern=rf"^{_Words}$", max_length=128)]
_Subfolder = Annotated[str, StringConstraints(pattern=rf"^({_Words})?$", max_length=512)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class HubSource(_Strict):
    """A repository on the hub: ``org/name`` at a commit, tag or branch, optionally a sub-folder."""

    repo: _Repo
    revision: _Revision = "main"
    subfolder: _Subfolder = ""

    @model_validator(mode="after")
    def _no_climbing(self) -> Self:
        if any(".." in text for text in (self.repo, self.revision, self.subfolder)):
            raise ValueError("must not contain '..'")
        return self

    def __str__(self) -> str:
        below = f":{self.subfolder}" if self.subfolder else ""
        return f"hub:{self.repo}@{self.revision}{below}"


class Signature(_Strict):
    """An Ed25519 signature (base64) over the 32 bytes of the source's SHA-256, by a key configured in the gateway."""

    key: _Name
    value: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]{86}==$")]


class Source(_Strict):
    """Location of an adapter's files that are not part of the request: exactly one of path, hub and url.

    Attributes:
        path: An absolute folder on the server.
        hub: A repository of the hub.
        url: ``https://``, ``http://``, ``s3://``, ``gs://`` or ``az://``; an archive, or a folder that ends with ``/``.
        sha256: Required digest of the download. For an archive, its SHA-256; for two files, the SHA-256 of what
            ``sha256sum adapter_config.json adapter_model.safetensors`` prints. ``moergate adapters digest`` prints it.
        signature: Signature over that SHA-256.
        credentials: Name of a secret in the gateway's settings; never the secret itself.
    """

    path: _Place | None = None
    hub: HubSource | None = None
    url: _Place | None = None
    sha256: _Sha256 | None = None
    signature: Signature | None = None
    credentials: _Name | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(place is not None for place in (self.path, self.hub, self.url)) != 1:
            raise ValueError("give exactly one of path, hub and url")
        if self.path is not None and (self.sha256 or self.signature or self.credentials):
            raise ValueError("sha256, signature and credentials go with hub or url, not with path")
        return self

    @property
    def is_remote(self) -> bool:
        """Whether the files must be downloaded."""
        return self.path is None

    def __str__(self) -> str:
        """The location alone, safe to show and log."""
        return str(self.hub or self.url or self.path)


class Provenance(_Strict):
    """Where a version came from, as seen by the gateway; holds no secret.

    Attributes:
        source: The folder, the URL, or ``hub:org/name@revision:subfolder``; empty for an upload.
        commit: The commit that the hub's revision resolved to.
        sha256: Digest of the download, as in `Source.sha256`.
        signed_by: Name of the key whose signature was verified.
    """

    kind: Literal["folder", "upload", "hub", "url"]
    source: _Text = ""
    commit: _Text | None = None
    sha256: _Sha256 | None = None
    signed_by: _Name | None = None
