"""Router `tfidf`: the expert whose examples use the prompt's words, weighted by rarity.

    score(e) = cosine(tfidf(prompt), mean of tfidf(x) over e's examples)

Terms are words and pairs of words, or character n-grams. Values use 1 + log tf and idf = log((1 + n) / (1 + df)) + 1,
with rows of unit length (scikit-learn's definition). The router needs no embedder, so it takes a fraction of a
millisecond. It matches what an embedding blurs: markup, codes, the wording of a template. It does not match synonyms.

A new expert changes the idf of its terms, and hence every expert's mean. The counts of a text do not change, so they
are cached by text (`routers.text.term_counts`); everything else is a few sparse sums over them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer

from routers.base import MethodCard
from routers.families.cards import EMBEDDING_CARD
from routers.families.options import CalibrationOptions
from routers.families.scoring import Learned, Prompts, Scores, ScoringRouter
from routers.library.examples import Examples
from routers.text.term_counts import TermCounts


class TfidfConfig(CalibrationOptions):
    """Options of `tfidf`."""

    analyzer: Literal["word", "char_wb"] = Field(
        "word",
        description="Terms are words, or character n-grams (char_wb), which also match misspelt and inflected words.",
    )
    longest: int = Field(2, ge=1, le=6, description="Maximum number of words, or letters, in a term.")
    max_terms: int = Field(50_000, ge=1, description="Number of terms that are kept at most; the most frequent ones.")


class TfidfRouter(ScoringRouter):
    """Routes to the expert whose examples share the prompt's rare words."""

    card: ClassVar[MethodCard] = replace(
        EMBEDDING_CARD,
        name="tfidf",
        title="Words, weighted by rarity",
        paper="baseline in mttl and in What the Weight (Holtermann et al., 2024)",
        generalization="prompts in the examples' words",
        needs_embedding=False,
        cost="counting words; one sparse product with E means",
    )
    config_class: ClassVar[type[CalibrationOptions]] = TfidfConfig

    @classmethod
    def learn(cls, config: TfidfConfig, examples: Examples) -> Learned:
        """Collect the terms, their idf, and the experts' means as a sparse matrix (E, terms)."""
        num_experts, num_texts = len(examples.experts), len(examples.texts)
        rows, terms = _term_counts(config.analyzer, config.longest).count(examples.texts, config.max_terms)
        idf = np.log((1 + num_texts) / (1 + np.bincount(rows.indices, minlength=len(terms)))) + 1
        values = (1 + np.log(rows.data)) * idf[rows.indices]
        row_of = np.repeat(np.arange(num_texts), np.diff(rows.indptr))
        norms = np.sqrt(np.bincount(row_of, values * values, num_texts))
        rows.data = values / norms[row_of]
        num_examples = np.maximum(np.bincount(examples.owner, minlength=num_experts), 1)
        place = (1 / num_examples[examples.owner], (examples.owner, np.arange(num_texts)))
        means = csr_matrix(csr_matrix(place, shape=(num_experts, num_texts)) @ rows)
        arrays = {"values": means.data, "columns": means.indices, "bounds": means.indptr, "idf": idf}
        return Learned(arrays, {"terms": terms})

    def prepare(self, learned: Learned) -> None:
        """Build the vectorizer and the matrix."""
        arrays, terms = learned.arrays, [str(term) for term in learned.data["terms"]]
        means = csr_matrix(
            (arrays["values"], arrays["columns"], arrays["bounds"]), shape=(len(self.experts), len(terms))
        )
        norms = np.sqrt(np.asarray(means.multiply(means).sum(axis=1)).ravel())
        self._has_terms = norms > 0
        self._means = csr_matrix(means.multiply((1 / np.maximum(norms, 1e-12))[:, None])).T.tocsr()
        self._vectorizer = _vectorizer(self.config.analyzer, self.config.longest, terms) if terms else None
        if self._vectorizer is not None:
            self._vectorizer.idf_ = np.asarray(arrays["idf"])

    def scores(self, prompts: Prompts) -> Scores:
        """Return cosines to the means; NaN for experts without a word."""
        found = np.full((len(prompts.texts), len(self.experts)), np.nan)
        if self._vectorizer is not None:
            cosines = (self._vectorizer.transform(prompts.texts) @ self._means).toarray()
            found[:, self._has_terms] = cosines[:, self._has_terms]
        return found


@lru_cache(maxsize=4)
def _term_counts(analyzer: str, longest: int) -> TermCounts:
    return TermCounts(_vectorizer(analyzer, longest).build_analyzer())


def _vectorizer(analyzer: str, longest: int, terms: list[str] | None = None) -> TfidfVectorizer:
    shortest = 1 if analyzer == "word" else min(3, longest)
    return TfidfVectorizer(
        analyzer=analyzer,
        ngram_range=(shortest, longest),
        sublinear_tf=True,
        vocabulary=terms,
        token_pattern=r"(?u)\b\w+\b" if analyzer == "word" else None,
    )
