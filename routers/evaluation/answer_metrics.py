"""Answer metrics by name, each a function from (answer, wanted answer) to a number in [0, 1].

A metric is an entry point of the group ``moergate.metrics``, including the built-in ones:

exact_match   1 if both are equal, ignoring case and surrounding white space
rouge_l       F1 of the longest common subsequence of words (Lin, 2004), as the package rouge-score without stemming
bleu          BLEU-4 of the sentence with NIST smoothing, by sacrebleu with its default tokeniser
f1            F1 of the bags of words, without articles and punctuation (SQuAD's definition)
sql_match     1 if both are the same SQL, ignoring case outside quotes, white space and a final semicolon
none          always 0, for samples whose good answers are not known
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points

from routers.errors import UnknownMetric

GROUP = "moergate.metrics"
Metric = Callable[[str, str], float]

_ROUGE_WORD = re.compile(r"[a-z0-9]+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_SQL_PIECE = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|\w+|[^\w\s]")


@cache
def metric_names() -> tuple[str, ...]:
    """Return the names of all metrics, sorted; imports none of them."""
    return tuple(sorted({entry.name for entry in entry_points(group=GROUP)}))


@cache
def metric(name: str) -> Metric:
    """Return the metric of that name; raises `UnknownMetric`."""
    for entry in entry_points(group=GROUP, name=name):
        found: Metric = entry.load()
        return found
    raise UnknownMetric(f"there is no metric {name!r}; known are {', '.join(metric_names())}")


def exact_match(answer: str, wanted: str) -> float:
    """Compare after stripping and case folding."""
    return float(answer.strip().casefold() == wanted.strip().casefold())


def rouge_l(answer: str, wanted: str) -> float:
    """Return 2 P R / (P + R), where P and R are the common subsequence's share of each text's words."""
    ours, theirs = _ROUGE_WORD.findall(answer.lower()), _ROUGE_WORD.findall(wanted.lower())
    common = _longest_common(ours, theirs)
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def bleu(answer: str, wanted: str) -> float:
    """Return sentence BLEU, scaled from sacrebleu's 100 to 1."""
    from sacrebleu import sentence_bleu

    return float(sentence_bleu(answer, [wanted]).score) / 100


def f1(answer: str, wanted: str) -> float:
    """Return the harmonic mean of the precision and recall of words."""
    ours, theirs = Counter(_plain_words(answer)), Counter(_plain_words(wanted))
    if not ours or not theirs:
        return float(ours == theirs)
    common = (ours & theirs).total()
    return 2 * common / (ours.total() + theirs.total())


def sql_match(answer: str, wanted: str) -> float:
    """Compare piece by piece: words without case, quoted texts exactly."""
    return float(_sql_pieces(answer) == _sql_pieces(wanted))


def none(answer: str, wanted: str) -> float:
    """Return 0."""
    return 0.0


def _longest_common(ours: list[str], theirs: list[str]) -> int:
    row = [0] * (len(theirs) + 1)
    for word in ours:
        diagonal = 0
        for column, other in enumerate(theirs, 1):
            above = row[column]
            row[column] = diagonal + 1 if word == other else max(above, row[column - 1])
            diagonal = above
    return row[-1]


def _plain_words(text: str) -> list[str]:
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return _ARTICLES.sub(" ", plain).split()


def _sql_pieces(text: str) -> list[str]:
    pieces = [piece if piece[0] in "'\"" else piece.lower() for piece in _SQL_PIECE.findall(text)]
    while pieces and pieces[-1] == ";":
        pieces.pop()
    return pieces
