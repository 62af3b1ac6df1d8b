"""Term counts against scikit-learn's, and that what is remembered changes nothing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from routers.base import Artefact
from routers.families.calibration import Calibration
from routers.families.scoring import Learned
from routers.library.examples import Examples
from routers.methods.tfidf import TfidfRouter
from routers.registry import make_config
from routers.text.term_counts import TermCounts

TEXTS = st.lists(st.text("abcd  ", max_size=30), max_size=12)


@given(TEXTS, TEXTS)
def test_counts_are_scikit_learns_whatever_was_counted_before(before: list[str], texts: list[str]) -> None:
    vectorizer = CountVectorizer(token_pattern=r"(?u)\b\w+\b", ngram_range=(1, 2))
    mine = TermCounts(vectorizer.build_analyzer())
    mine.count(before)
    counts, terms = mine.count(texts)
    if not any(text.split() for text in texts):
        assert (counts.shape, terms) == ((len(texts), 0), [])
        return
    expected = vectorizer.fit_transform(texts)
    assert terms == vectorizer.get_feature_names_out().tolist()
    np.testing.assert_array_equal(counts.toarray(), expected.toarray())
    assert counts.has_sorted_indices


@given(TEXTS, TEXTS, st.integers(1, 8))
def test_the_most_frequent_terms_are_kept(before: list[str], texts: list[str], most: int) -> None:
    mine, fresh = TermCounts(str.split), TermCounts(str.split)
    mine.count(before)
    counts, terms = mine.count(texts, most)
    frequency = Counter(word for text in texts for word in text.split())
    assert len(terms) == min(most, len(frequency))
    least = min((frequency[term] for term in terms), default=0)
    assert all(frequency[term] <= least for term in frequency.keys() - set(terms))
    assert np.asarray(counts.sum(axis=0)).ravel().tolist() == [frequency[term] for term in terms]
    assert fresh.count(texts, most).terms == terms


def test_no_text_is_taken_apart_twice_until_too_many_are_kept() -> None:
    asked: list[str] = []

    def analyse(text: str) -> list[str]:
        asked.append(text)
        return text.split()

    counts = TermCounts(analyse, max_kept=5)
    first = counts.count(["a b", "c d"])
    again = counts.count(["c d", "a b", "e f g"])
    assert asked == ["a b", "c d", "e f g"]
    assert again.terms == list("abcdefg")
    counts.count(["a b"])  # seven are kept, so they are forgotten first
    assert asked == ["a b", "c d", "e f g", "a b"]
    assert counts.count(["a b", "c d"]).terms == first.terms


@pytest.mark.parametrize("options", [{"longest": 2}, {"analyzer": "char_wb", "longest": 4}])
def test_tfidf_learns_what_scikit_learn_does(options: dict[str, object]) -> None:
    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in range(40)]
    texts = tuple(" ".join(rng.choice(words, rng.integers(1, 12))) for _ in range(60))
    owner = np.sort(rng.integers(0, 7, 60)).astype(np.int32)
    blank = np.zeros((60, 1), np.float32)
    examples = Examples(tuple("abcdefg"), texts, blank, owner, texts, blank)
    config = make_config("tfidf", options)
    learned = TfidfRouter.learn(config, examples)
    whole = TfidfVectorizer(
        analyzer=str(options.get("analyzer", "word")),
        ngram_range=(3 if "analyzer" in options else 1, int(str(options["longest"]))),
        sublinear_tf=True,
        token_pattern=None if "analyzer" in options else r"(?u)\b\w+\b",
    )
    rows = whole.fit_transform(texts).toarray()
    assert learned.data["terms"] == whole.get_feature_names_out().tolist()
    np.testing.assert_allclose(learned.arrays["idf"], whole.idf_)
    router = TfidfRouter.load(config, _artefact(learned))
    means = np.stack([rows[owner == number].mean(axis=0) for number in range(7)])
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(router._means.T.toarray(), expected, atol=1e-12)


def _artefact(learned: Learned) -> Artefact:
    data = {"experts": list("abcdefg"), "learned": dict(learned.data), **Calibration(0.0, 1.0, 1.0).dump()}
    return Artefact("tfidf", learned.arrays, data, "library", "made-up")
