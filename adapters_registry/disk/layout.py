"""The layout of the library's folder: names of files and folders, forms of identifiers, and hashes.

    <root>/<sha256>/adapter_config.json, adapter_model.safetensors      one adapter, named by `content_hash`
    <root>/.prototypes/<sha256>.safetensors                             vectors for gates, derived from the adapter
    <root>/.recipes/<16 hex digits>                                     the text of a long recipe, by `recipe_digest`

The registry writes the folder; the plugin inside vLLM reads it. This is the only module of the registry that the
plugin imports, so it imports the standard library alone.
"""

from __future__ import annotations

import hashlib
import re

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE)
PROTOTYPES_FOLDER = ".prototypes"
RECIPES_FOLDER = ".recipes"

EXPERT_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
EXPERT_VERSION = re.compile(r"[0-9a-f]{8}")
EXPERT_ID = re.compile(f"{EXPERT_NAME.pattern}@{EXPERT_VERSION.pattern}")
SHA256 = re.compile(r"[0-9a-f]{64}")
RECIPE_DIGEST = re.compile(r"[0-9a-f]{16}")


def content_hash(config: bytes, weights_sha256: str) -> str:
    """Return the hash that names an adapter's content.

    Args:
        config: The normalised config.
        weights_sha256: SHA-256 of the weights file, in hex.
    """
    return hashlib.sha256(config + weights_sha256.encode("ascii")).hexdigest()


def recipe_digest(text: str) -> str:
    """Return the name of a long recipe: the first 16 hex digits of its text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
