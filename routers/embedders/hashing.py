"""A deterministic encoder without a model: feature hashing of words and character n-grams.

It is used in tests and load tests, and on machines without a model. Texts that share words or parts of words are near
each other; synonyms are not. The only dependency is numpy.

Formula: x = Σ_f w_f · s(f) · e_{h(f)} over the features f of a text, then x / ‖x‖. h and s are bits of BLAKE2b, w is 1
for a word and 0.5 for a character 3-gram (Weinberger et al., Feature Hashing for Large Scale Multitask Learning, 2009).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence

import numpy as np

from routers.base import Matrix
from routers.embedders.base import unit_rows

_WORD = re.compile(r"\w+|[^\w\s]", re.UNICODE)
_GRAM = 3


class HashingEncoder:
    """A feature-hashing encoder; equal texts have bitwise equal rows on every machine."""

    def __init__(self, dim: int = 384) -> None:
        if dim < 2:
            raise ValueError(f"dim must be at least 2, not {dim}")
        self.name = f"hashing-{dim}"
        self.dim = dim

    def encode(self, texts: Sequence[str]) -> Matrix:
        """Return unit rows, shape (len(texts), dim); a text without features has the first unit vector."""
        rows = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for feature, weight in _features(text):
                digest = hashlib.blake2b(feature.encode("utf-8", "surrogatepass"), digest_size=8).digest()
                number = int.from_bytes(digest, "little")
                row[(number >> 1) % self.dim] += weight if number & 1 else -weight
        return unit_rows(rows)

    def close(self) -> None:
        """Do nothing; there is no model to free."""


def _features(text: str) -> Iterator[tuple[str, float]]:
    for word in _WORD.findall(text.lower()):
        yield word, 1.0
        padded = f"<{word}>"
        for start in range(len(padded) - _GRAM + 1):
            yield "#" + padded[start : start + _GRAM], 0.5
