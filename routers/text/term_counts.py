"""A cache of how often each term occurs in each text, because counting words is the slowest part of a fit to words.

A library is fitted again whenever an expert is added or removed, and nearly all of its texts are unchanged then. So
counts are cached by text. Everything that depends on all texts together, the selected terms and their idf, is a few
sums over the counts and computed each time. The result never depends on the state of the cache.

Shapes: n texts, V terms.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from threading import Lock
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

MAX_KEPT = 16_000_000
"""Number of cached counts, eight bytes each: 270,000 texts of sixty terms."""


class Counted(NamedTuple):
    """Counts, shape (n, V), and the terms, sorted."""

    counts: csr_matrix
    terms: list[str]


class TermCounts:
    """A counter of the terms of texts, with a cache; thread-safe.

    Args:
        analyse: Splits a text into its terms.
        max_kept: Number of counts above which the cache is emptied.
    """

    def __init__(self, analyse: Callable[[str], Sequence[str]], max_kept: int = MAX_KEPT) -> None:
        self._analyse = analyse
        self._max_kept = max_kept
        self._lock = Lock()
        self._forget()

    def _forget(self) -> None:
        self._number: dict[str, int] = {}
        self._hashes = array("Q")
        self._kept: dict[str, NDArray[np.int32]] = {}
        self._num_kept = 0

    def count(self, texts: Sequence[str], max_terms: int | None = None) -> Counted:
        """Count the terms of these texts, up to `max_terms` of the most frequent ones; ties are broken by hash."""
        with self._lock:
            if self._num_kept > self._max_kept:
                self._forget()
            found = [self._counted(text) for text in texts]
            numbers, values = np.concatenate(found, axis=1) if found else np.zeros((2, 0), np.int32)
            frequency = np.asarray(np.bincount(numbers, values, len(self._number)), np.float64)
            chosen = self._most_frequent(frequency, max_terms)
            name_of = list(self._number)
        chosen = sorted(chosen, key=name_of.__getitem__)
        column = np.full(len(name_of), -1, np.int32)
        column[chosen] = np.arange(len(chosen))
        columns = column[numbers]
        there = columns >= 0
        rows = np.repeat(np.arange(len(texts)), [counted.shape[1] for counted in found])[there]
        bounds = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(texts)))])
        counts = csr_matrix((values[there], columns[there], bounds), (len(texts), len(chosen)), np.float64)
        counts.sort_indices()  # so that sums do not depend on the order in which terms were first seen
        return Counted(counts, [name_of[number] for number in chosen])

    def _counted(self, text: str) -> NDArray[np.int32]:
        """Return the numbers of a text's terms and how often each occurs, shape (2, number of different terms)."""
        counted = self._kept.get(text)
        if counted is None:
            terms = Counter(self._analyse(text))
            counted = np.array([[self._number_of(term) for term in terms], list(terms.values())], np.int32)
            self._kept[text] = counted
            self._num_kept += len(terms)
        return counted

    def _number_of(self, term: str) -> int:
        number = self._number.setdefault(term, len(self._hashes))
        if number == len(self._hashes):
            digest = hashlib.blake2b(term.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            self._hashes.append(int.from_bytes(digest, "little"))
        return number

    def _most_frequent(self, frequency: NDArray[np.float64], max_terms: int | None) -> list[int]:
        there = np.flatnonzero(frequency)
        if max_terms is None or len(there) <= max_terms:
            return [int(number) for number in there]
        frequency = frequency[there]
        lowest = np.partition(frequency, len(there) - max_terms)[len(there) - max_terms]
        sure, equal = there[frequency > lowest], there[frequency == lowest]
        hashes = np.array(self._hashes, np.uint64)[equal]
        return [int(number) for number in (*sure, *equal[np.argsort(hashes, kind="stable")][: max_terms - len(sure)])]
