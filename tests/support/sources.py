"""Places to fetch adapters from: a hub, a file server that can hold back, packed adapters."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.hostile import Asked, response

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TWO_FILES = ("adapter_config.json", "adapter_model.safetensors")


def packed(folder: Path, **more: bytes) -> bytes:
    """A zip of a folder's files, and of further ones by name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
        for name, content in more.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@dataclass
class FileServer:
    """Answers with files by path, with tags and ranges.

    Attributes:
        hold_after: Bytes of a body after which it waits for `release`; None does not wait.
    """

    files: dict[str, bytes]
    hold_after: int | None = None
    release: asyncio.Event = field(default_factory=asyncio.Event)
    held: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        """One answer."""
        body = self.files.get(asked.path)
        if body is None:
            writer.write(response(404))
            return
        etag = f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'
        begin = 0
        if asked.headers.get("if-range") == etag:
            begin = int(asked.headers["range"].removeprefix("bytes=").removesuffix("-"))
        more = {"content_range": f"bytes {begin}-{len(body) - 1}/{len(body)}"} if begin else {}
        writer.write(response(206 if begin else 200, etag=etag, content_length=str(len(body) - begin), **more))
        if self.hold_after is not None and not begin and not self.release.is_set():
            writer.write(body[: self.hold_after])
            begin = self.hold_after
            await writer.drain()
            self.held.set()
            await self.release.wait()
        writer.write(body[begin:])


@dataclass
class FakeHub:
    """The hub's two answers: what a revision is, and the files, of which the large one is on another host.

    Attributes:
        cdn: The origin that large files are redirected to.
        token: What private repositories ask for.
    """

    files: Mapping[str, bytes]
    cdn: str = ""
    token: str | None = None
    commit: str = COMMIT
    sha256: Mapping[str, str] = field(default_factory=dict)

    async def __call__(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        """One answer."""
        if self.token and asked.headers.get("authorization") != f"Bearer {self.token}":
            writer.write(response(401))
        elif asked.path.startswith("/api/models/org/name/revision/"):
            siblings = [
                {"rfilename": name, "lfs": {"sha256": self.sha256.get(name, hashlib.sha256(content).hexdigest())}}
                for name, content in self.files.items()
                if name.endswith(".safetensors")
            ]
            writer.write(response(body=json.dumps({"sha": self.commit, "siblings": siblings}).encode()))
        elif asked.path.startswith(f"/org/name/resolve/{self.commit}/"):
            name = asked.path.removeprefix(f"/org/name/resolve/{self.commit}/")
            if name.endswith(".safetensors") and self.cdn:
                writer.write(response(302, location=f"{self.cdn}/{name}?X-Signature=presigned"))
            else:
                writer.write(response(body=self.files[name]) if name in self.files else response(404))
        else:
            writer.write(response(404))
