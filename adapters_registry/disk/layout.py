"""How an adapter's content is named: one hash over its config and its weights. The engine's plugin uses it too."""

from __future__ import annotations

import hashlib


def content_hash(config: bytes, weights_sha256: str) -> str:
    """The hash that names an adapter's content, of the normalised config and the weights' own hash."""
    return hashlib.sha256(config + weights_sha256.encode("ascii")).hexdigest()
