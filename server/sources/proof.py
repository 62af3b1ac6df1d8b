"""What came is what was meant: one digest for archives and folders, and signatures over it. Blocks."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from adapters_registry.disk import safe_files
from adapters_registry.disk.layout import CONFIG_FILE, WEIGHTS_FILE
from adapters_registry.errors import BadSource, Problem
from adapters_registry.sources import Source


def digest_of(path: Path, read: Callable[[int], None] = lambda num_bytes: None) -> str:
    """The SHA-256, in hex, that pins and signatures are about.

    Of a file its own. Of a folder that of the text ``sha256sum adapter_config.json adapter_model.safetensors`` prints,
    so that it covers both files. `read` is told the bytes as they are read. Raises OSError.
    """
    if path.is_file():
        return safe_files.sha256_of(path, read)
    lines = [f"{safe_files.sha256_of(path / name, read)}  {name}\n" for name in (CONFIG_FILE, WEIGHTS_FILE)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_key(source: Source, keys: Mapping[str, str], *, required: bool) -> None:
    """Judge a signature before there is anything to compare it with. Raises BadSource."""
    if source.signature is None:
        if required:
            fix = "Sign the digest that 'moergate adapters digest' tells, with a key of sources.keys."
            raise BadSource([Problem("source.signature", "is missing, and this gateway requires one", fix)])
    elif source.signature.key not in keys:
        fix = "Add the public key to sources.keys, or sign with one that is there."
        raise BadSource([Problem("source.signature.key", "is no key that this gateway knows", fix)])


def check_proof(source: Source, digest: str, keys: Mapping[str, str]) -> None:
    """Compare a digest with what the source promises. Raises BadSource."""
    if source.sha256 is not None and source.sha256 != digest:
        fix = "Pin what you have checked; if nobody has changed it on purpose, find out who did."
        raise BadSource([Problem("source.sha256", f"is {source.sha256}, but what came has {digest}", fix)])
    if source.signature is not None:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(keys[source.signature.key]))
        try:
            key.verify(base64.b64decode(source.signature.value), bytes.fromhex(digest))
        except InvalidSignature:
            what = f"does not fit what came (SHA-256 {digest})"
            raise BadSource(
                [Problem("source.signature", what, "Sign exactly this content, or do not use it.")]
            ) from None
