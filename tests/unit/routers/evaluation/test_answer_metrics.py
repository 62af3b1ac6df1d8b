"""Metrics against the packages that define them, on random texts, and their edge cases."""

import random

import pytest

from routers.errors import UnknownMetric
from routers.evaluation.answer_metrics import metric, metric_names

WORDS = "the a quick brown fox jumps over lazy dog 12 3.5 it's SELECT name, where".split()


def texts(seed: int) -> tuple[str, str]:
    rng = random.Random(seed)
    return tuple(" ".join(rng.choices(WORDS, k=rng.randint(0, 15))) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(60))
def test_rouge_l_is_rouge_scores(seed: int) -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    answer, wanted = texts(seed)
    assert metric("rouge_l")(answer, wanted) == pytest.approx(scorer.score(wanted, answer)["rougeL"].fmeasure)


@pytest.mark.parametrize("name", ["exact_match", "rouge_l", "bleu", "f1", "sql_match"])
def test_the_same_is_one_and_something_else_nothing(name: str) -> None:
    assert metric(name)("list the names of all cities", "list the names of all cities") == pytest.approx(1)
    assert metric(name)("zzz", "list the names of all cities") < 0.01
    for seed in range(30):
        assert 0 <= metric(name)(*texts(seed)) <= 1 + 1e-9


@pytest.mark.parametrize(
    ("name", "answer", "wanted", "expected"),
    [
        ("exact_match", " Ironic\n", "ironic", 1),
        ("exact_match", "not ironic", "ironic", 0),
        ("f1", "The cat sat", "a cat ran", 0.5),
        ("f1", "", "", 1),
        ("f1", "", "cat", 0),
        ("sql_match", "select  NAME from T ;", "SELECT name FROM t", 1),
        ("sql_match", "SELECT * FROM t WHERE a='X'", "select * from t where a = 'X'", 1),
        ("sql_match", "SELECT * FROM t WHERE a='X'", "select * from t where a = 'x'", 0),
        ("sql_match", "SELECT a>=1", "SELECT a>1", 0),
        ("rouge_l", "", "", 0),
        ("none", "x", "x", 0),
    ],
)
def test_definitions(name: str, answer: str, wanted: str, expected: float) -> None:
    assert metric(name)(answer, wanted) == pytest.approx(expected)


def test_names() -> None:
    assert {"exact_match", "rouge_l", "bleu", "f1", "sql_match", "none"} <= set(metric_names())
    with pytest.raises(UnknownMetric, match="exact_match"):
        metric("no such")
