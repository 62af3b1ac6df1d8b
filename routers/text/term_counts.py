"""How often each term occurs in each text, remembered: counting words is most of what a fit to words costs.

A library is fitted anew whenever an expert comes or goes, and nearly all of its texts are then the same. So what has
been counted is kept by text. What is derived from all texts together, the terms that count and their idf, is a few sums
over the counts and made anew each time: the result never depends on what was remembered.

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
"""Counts that are kept, eight bytes each: 270,000 texts of sixty terms."""


class Counted(NamedTuple):
    """Counts, shape (n, V), and the terms, sorted."""

    counts: csr_matrix
    terms: list[str]


class TermCounts:
    """Counts the terms of texts; thread-safe.

    Args:
        analyse: From a text to its terms.
        max_kept: When more counts than that are kept, all are forgotten.
    """

    def __init__(self, analyse: Callable[[str], Sequence[str]], max_kept: int = MAX_KEPT) -> None:
        self._analyse = analyse
        self._max_kept = max_kept
        self._lock = Lock()
        self._forget()

    def _forget(self) -> None:
        self._number: dict[str, int] = {}
        self._lots = array("Q")
        self._kept: dict[str, NDArray[np.int32]] = {}
        self._num_kept = 0

    def count(self, texts: Sequence[str], max_terms: int | None = None) -> Counted:
        """Count the terms of these texts, of very many only the most frequent; lots are drawn between equals."""
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
        counts.sort_indices()  # sums then do not depend on the order in which terms were met
        return Counted(counts, [name_of[number] for number in chosen])

    def _counted(self, text: str) -> NDArray[np.int32]:
        """Numbers of a text's terms, and how often each occurs, shape (2, number of different terms)."""
        counted = self._kept.get(text)
        if counted is None:
            terms = Counter(self._analyse(text))
            counted = np.array([[self._number_of(term) for term in terms], list(terms.values())], np.int32)
            self._kept[text] = counted
            self._num_kept += len(terms)
        return counted

    def _number_of(self, term: str) -> int:
        number = self._number.setdefault(term, len(self._lots))
        if number == len(self._lots):
            digest = hashlib.blake2b(term.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            self._lots.append(int.from_bytes(digest, "little"))
        return number

    def _most_frequent(self, frequency: NDArray[np.float64], most: int | None) -> list[int]:
        there = np.flatnonzero(frequency)
        if most is None or len(there) <= most:
            return [int(number) for number in there]
        frequency = frequency[there]
        least = np.partition(frequency, len(there) - most)[len(there) - most]
        sure, equal = there[frequency > least], there[frequency == least]
        lots = np.array(self._lots, np.uint64)[equal]
        return [int(number) for number in (*sure, *equal[np.argsort(lots, kind="stable")][: most - len(sure)])]
