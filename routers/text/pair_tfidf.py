"""Tf-idf cosines of one text to many, where the idf of each pair is computed from the two texts alone.

Shapes: E known texts, V terms in them. With term counts a of a known text and b of the new text:

    idf(t) = 1 if both have t, else i = 1 + log(3/2)          (scikit-learn's smooth idf over two documents)
    cosine = Σ_both a_t b_t / (‖a'‖ ‖b'‖)
    ‖a'‖²  = i² Σ a_t² + (1 - i²) Σ_both a_t²,   ‖b'‖² likewise

So nothing has to be fitted for a pair: all E cosines come from one selection of rows of the counts (V, E). Terms are
words of two letters or more in lower case without English stop words (scikit-learn's list).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer

from routers.base import Floats
from routers.text.term_counts import TermCounts

_RARE = (1 + np.log(3 / 2)) ** 2
"""i² of a term that is in only one of the two texts."""


def count_terms(texts: Sequence[str]) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Count the terms; returns the arrays of the sparse counts (V, E), and the terms."""
    rows, terms = _term_counts().count(texts)
    counts = csr_matrix(rows.T)
    return {"values": counts.data, "columns": counts.indices, "bounds": counts.indptr}, terms


class PairTfidf:
    """The known texts; raises KeyError or ValueError for arrays that `count_terms` did not return."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]], terms: Sequence[str], num_texts: int) -> None:
        self._analyse: Callable[[str], list[str]] = _vectorizer().build_analyzer()
        self._row = {term: row for row, term in enumerate(terms)}
        parts = tuple(np.asarray(arrays[name]) for name in ("values", "columns", "bounds"))
        self._counts = csr_matrix(parts, shape=(len(terms), num_texts), dtype=np.float64)
        self._squares = np.asarray(self._counts.power(2).sum(axis=0)).ravel()

    def cosines(self, text: str) -> Floats:
        """Return the cosine to each known text, shape (E,), in [0, 1]; 0 if either text has no term."""
        counted = Counter(self._analyse(text))
        known = sorted((self._row[term], count) for term, count in counted.items() if term in self._row)
        b = np.array([count for _, count in known], np.float64)
        a = self._counts[[row for row, _ in known]]
        squares_of_text = float(sum(count * count for count in counted.values()))
        norms_a = _RARE * self._squares + (1 - _RARE) * np.asarray(a.power(2).sum(axis=0)).ravel()
        norms_b = _RARE * squares_of_text + (1 - _RARE) * ((a > 0).T @ np.square(b))
        product = np.sqrt(norms_a * norms_b)
        return np.asarray(np.where(product > 0, (a.T @ b) / np.where(product > 0, product, 1.0), 0.0))


@cache
def _term_counts() -> TermCounts:
    return TermCounts(_vectorizer().build_analyzer())


def _vectorizer() -> CountVectorizer:
    return CountVectorizer(stop_words="english")
