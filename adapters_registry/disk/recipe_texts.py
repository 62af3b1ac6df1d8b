"""Long recipes by the hash of their text, so that a request can carry the hash instead.

    <root>/.recipes/<16 hex digits>      the canonical text; immutable, written completely or not at all

The gateway writes; every replica on the same store reads. Calls block unless the text is in memory.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict
from pathlib import Path

from adapters_registry.disk import safe_files
from adapters_registry.disk.layout import RECIPE_DIGEST, RECIPES_FOLDER, recipe_digest

MAX_REMEMBERED = 4096


class RecipeTexts:
    """The recipe texts below the root of the adapters' store. Raises StorageFull and StorageUnwritable."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder = root / RECIPES_FOLDER
        self._known: OrderedDict[str, str] = OrderedDict()

    def knows(self, digest: str) -> bool:
        """Return whether a text is in memory, so that `get` and `put` do not touch the disk."""
        return digest in self._known

    def put(self, text: str) -> str:
        """Store a text; returns its digest. Durable when this returns."""
        digest = recipe_digest(text)
        if digest in self._known:
            return digest
        target = self._folder / digest
        if not target.exists():
            with safe_files.storage_errors(self._root, len(text)):
                self._folder.mkdir(exist_ok=True)
                scratch = self._folder / f".{uuid.uuid4().hex}"
                safe_files.write_new(scratch, text.encode())
                scratch.rename(target)
                safe_files.fsync_path(self._folder)
        self._remember(digest, text)
        return digest

    def get(self, digest: str) -> str | None:
        """Return the text of a digest, or None if it is missing or damaged."""
        if digest in self._known:
            return self._known[digest]
        if RECIPE_DIGEST.fullmatch(digest) is None:
            return None
        try:
            text = (self._folder / digest).read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            return None
        if recipe_digest(text) != digest:
            return None
        self._remember(digest, text)
        return text

    def _remember(self, digest: str, text: str) -> None:
        self._known[digest] = text
        while len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
