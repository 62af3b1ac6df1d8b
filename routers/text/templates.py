"""Templates: the words that many of an expert's examples begin or end with, and the examples without them.

An expert's examples often fill the blanks of one template: "Which intent of the kitchen assistant fits this request?
…". People who have not seen the examples type only the content, or phrase the instruction differently. A whole example
matches its siblings far better than such a prompt will. So routers calibrate on *bare* examples, and some compare
content and instruction separately (`two_part`).

A *template* is the longest beginning or end, in whole words, that at least an eighth of the examples share, and at
least three.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

SHARE = 0.12
MIN_EXAMPLES = 3
MAX_WORDS = 40

_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Example:
    """An example in parts: the shared words before and after, and its own content between them; all stripped."""

    before: str
    content: str
    after: str

    @property
    def template(self) -> str:
        """The words shared with other examples; empty if there are none."""
        return f"{self.before} {self.after}".strip()


def take_apart(examples: Sequence[str]) -> tuple[Example, ...]:
    """Split each of an expert's examples into template and content; if no content would remain, it has no template.

    Cached, because a library of many experts is fitted again whenever one of them changes.
    """
    return _take_apart(tuple(examples))


def bare_texts(examples: Sequence[str]) -> tuple[str, ...]:
    """Return each of an expert's examples without its template."""
    return tuple(example.content for example in take_apart(examples))


@lru_cache(maxsize=16384)
def _take_apart(examples: tuple[str, ...]) -> tuple[Example, ...]:
    needed = max(MIN_EXAMPLES, SHARE * len(examples))
    spans = [[match.span() for match in _WORD.finditer(text)] for text in examples]
    words = [[text[a:b].lower() for a, b in places] for text, places in zip(examples, spans, strict=True)]
    befores = _shared(words, needed)
    afters = _shared([each[::-1] for each in words], needed)
    found = []
    for text, places, before, after in zip(examples, spans, befores, afters, strict=True):
        if before + after >= len(places):
            found.append(Example("", text, ""))
            continue
        start = places[before - 1][1] if before else 0
        end = places[len(places) - after][0] if after else len(text)
        found.append(Example(text[:start].strip(), text[start:end].strip(), text[end:].strip()))
    return tuple(found)


def _shared(words: Sequence[Sequence[str]], needed: float) -> list[int]:
    """Count how many first words of each text are shared by at least `needed` texts."""
    lengths = [0] * len(words)
    active = list(range(len(words)))
    for num in range(1, MAX_WORDS + 1):
        counts = Counter(tuple(words[row][:num]) for row in active if len(words[row]) >= num)
        active = [row for row in active if len(words[row]) >= num and counts[tuple(words[row][:num])] >= needed]
        if not active:
            break
        for row in active:
            lengths[row] = num
    return lengths
