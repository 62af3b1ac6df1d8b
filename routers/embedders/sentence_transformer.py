"""The reference encoder: any model that sentence-transformers loads, from a folder or the hub.

The packages sentence-transformers and torch are imported when an encoder is made.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from routers.base import Matrix
from routers.embedders.base import clean_text, unit_rows
from routers.embedders.unusable_packages import hide_unusable_packages
from routers.errors import EmbedderError


class SentenceTransformerEncoder:
    """A sentence-transformers model, on the device that the package chooses unless one is given."""

    def __init__(self, model: str | Path, *, name: str | None = None, device: str | None = None) -> None:
        """Load `model`, a folder or a hub name; raises `EmbedderError`."""
        try:
            hide_unusable_packages()
            library = importlib.import_module("sentence_transformers")
        except ImportError as error:
            raise EmbedderError(
                f"the embedder {model} needs the package sentence-transformers",
                "pip install sentence-transformers",
            ) from error
        try:
            self._model: Any = library.SentenceTransformer(str(model), device=device)
        except Exception as error:
            raise EmbedderError(
                f"sentence-transformers cannot load {str(model)!r} ({error})",
                "check the folder or the hub name",
            ) from error
        self.name = name or (model.name if isinstance(model, Path) else model)
        dimension = getattr(self._model, "get_embedding_dimension", None)
        self.dim = int(dimension() if dimension else self._model.get_sentence_embedding_dimension())

    def encode(self, texts: Sequence[str]) -> Matrix:
        """Return unit rows, shape (len(texts), dim)."""
        if self._model is None:
            raise EmbedderError("this encoder is closed")
        if not texts:
            return np.empty((0, self.dim), dtype=np.float32)
        rows = self._model.encode(
            [clean_text(text) for text in texts],
            convert_to_numpy=True,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        return unit_rows(np.asarray(rows, dtype=np.float32))

    def close(self) -> None:
        """Free the model."""
        self._model = None
