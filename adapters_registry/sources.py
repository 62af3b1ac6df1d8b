"""Where an adapter comes from: what a manifest may ask for, and what is recorded of it afterwards.

Only the form is judged here. Whether a place may be read at all is the gateway's business (`server.sources`).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, StringConstraints, model_validator

_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
_Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$", max_length=4096)]  # PostgreSQL cannot store a NUL
_Place = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$", min_length=1, max_length=4096)]
_Repo = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")]
_Words = r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*"
_Revision = Annotated[str, StringConstraints(pattern=rf"^{_Words}$", max_length=128)]
_Subfolder = Annotated[str, StringConstraints(pattern=rf"^({_Words})?$", max_length=512)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class HubSource(_Strict):
    """A repository of the hub: ``org/name``, at a commit, tag or branch; the files may be in a sub-folder."""

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
    """An Ed25519 signature (base64) over the 32 bytes of the source's SHA-256, by a key that the gateway knows."""

    key: _Name
    value: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]{86}==$")]


class Source(_Strict):
    """Where the adapter's files are, if they do not come with the request: exactly one of path, hub and url.

    Attributes:
        path: An absolute folder on the server.
        hub: A repository of the hub.
        url: ``https://``, ``http://``, ``s3://``, ``gs://`` or ``az://``; an archive, or a folder that ends with ``/``.
        sha256: What the download must have: of an archive the SHA-256; of two files the SHA-256 of what
            ``sha256sum adapter_config.json adapter_model.safetensors`` prints. ``moergate adapters digest`` tells it.
        signature: Over that SHA-256.
        credentials: The name of a secret that the gateway is configured with; never the secret.
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
        """Whether it has to be fetched first."""
        return self.path is None

    def __str__(self) -> str:
        """The place alone, as it may be shown and logged."""
        return str(self.hub or self.url or self.path)


class Provenance(_Strict):
    """Where a version came from, as the gateway saw it; holds no secret.

    Attributes:
        source: The folder, the URL, or ``hub:org/name@revision:subfolder``; empty for an upload.
        commit: The commit that a hub's revision stood for.
        sha256: Of what was fetched, as in `Source.sha256`.
        signed_by: The name of the key whose signature was verified.
    """

    kind: Literal["folder", "upload", "hub", "url"]
    source: _Text = ""
    commit: _Text | None = None
    sha256: _Sha256 | None = None
    signed_by: _Name | None = None
