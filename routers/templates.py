"""Example prompts without their template: about what people type who have never seen the examples.

An expert's examples are often one template with the blanks filled differently: "Which intent of the kitchen assistant
fits this request? …". Scored against its siblings, such an example looks far safer than a real prompt, which brings
its content and none of the template. So routers calibrate on *bare* examples: words that stand in a sequence of four
which two siblings share are left out.

On public task data (11 experts, 32 examples each, 440 prompts in words that no expert has seen, 100 out of scope) this,
with the assumed share of prompts that have an expert lowered from 0.9 to 0.8, took the threshold of `knn` from 0.40 to
0.31: 70 % of those prompts reached their expert instead of 50 %, and 84 % of the others were left to the base instead
of 94 %. Routing by bare examples got 79 % right, which foretold the 80 % of the prompts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

NUM_WORDS = 4
NUM_SIBLINGS = 2
MIN_WORDS = 2

_WORD = re.compile(r"\S+")


def bare_texts(examples: Sequence[str]) -> tuple[str, ...]:
    """Each of an expert's examples without what it shares with at least two others.

    An example of which fewer than two words would be left stays whole; so do all where nothing is shared. Remembered,
    since a library of many experts is fitted anew whenever one of them changes.
    """
    return _bare_texts(tuple(examples))


@lru_cache(maxsize=16384)
def _bare_texts(examples: tuple[str, ...]) -> tuple[str, ...]:
    split = [_WORD.findall(text) for text in examples]
    counts: Counter[tuple[str, ...]] = Counter()
    for words in split:
        counts.update(set(_sequences(words)))
    found = []
    for text, words in zip(examples, split, strict=True):
        shared = [False] * len(words)
        for start, sequence in enumerate(_sequences(words)):
            if counts[sequence] > NUM_SIBLINGS:
                shared[start : start + NUM_WORDS] = [True] * NUM_WORDS
        left = [word for word, is_shared in zip(words, shared, strict=True) if not is_shared]
        found.append(" ".join(left) if any(shared) and len(left) >= MIN_WORDS else text)
    return tuple(found)


def _sequences(words: Sequence[str]) -> list[tuple[str, ...]]:
    lower = [word.lower() for word in words]
    return [tuple(lower[start : start + NUM_WORDS]) for start in range(len(lower) - NUM_WORDS + 1)]
