"""Examples without their template, and what calibrating on them does to the threshold."""

import random

import numpy as np
import pytest

from routers.base import LibraryExpert, RouteQuery, no_progress
from routers.fitting import fit_data
from routers.methods.knn import KnnConfig, KnnRouter
from routers.text.templates import Example, bare_texts, take_apart
from tests.unit.routers.builders import centres, expert_id, unit


def test_words_that_three_examples_share_are_left_out() -> None:
    assert bare_texts(
        [
            "Which intent fits this request?\nbook me a table",
            "which intent fits this request? how long do eggs boil",
            "Which  intent fits this request?\n\nwhere is my car",
            "a request of its own",
        ]
    ) == ("book me a table", "how long do eggs boil", "where is my car", "a request of its own")


def test_what_fewer_share_or_would_leave_nothing_stays_whole() -> None:
    pair = ["translate this into French: tree", "translate this into French: house"]
    assert bare_texts(pair) == tuple(pair)
    nothing = ["say it in other words"] * 3
    assert bare_texts(nothing) == tuple(nothing)
    three = [f"turn these words into digits: {word}" for word in ("one", "two hundred", "forty two")]
    assert bare_texts(three) == ("one", "two hundred", "forty two")
    assert bare_texts([]) == ()


def test_an_example_is_taken_apart_into_what_it_shares_before_and_after() -> None:
    texts = [f"Tweet: {content}\nIs that ironic or not?" for content in ("lovely rain today", "I won", "so  so")]
    texts += [f"{content}. Does the author mean it?" for content in ("great", "what a day", "thanks a lot")]
    assert take_apart(texts)[0] == Example("Tweet:", "lovely rain today", "Is that ironic or not?")
    assert take_apart(texts)[2].content == "so  so"
    assert take_apart(texts)[4] == Example("", "what a day.", "Does the author mean it?")
    assert take_apart(texts)[4].template == "Does the author mean it?"


@pytest.mark.parametrize("seed", range(5))
def test_what_is_shared_is_the_longest_side_that_enough_texts_have(seed: int) -> None:
    """Against the definition, side by side and text by text."""
    rng = random.Random(seed)
    texts = [" ".join(rng.choices("ab", k=rng.randint(1, 6))) for _ in range(40)]
    words = [text.split() for text in texts]

    def shared(own: list[str], others: list[list[str]]) -> int:
        return max((n for n in range(1, len(own) + 1) if sum(o[:n] == own[:n] for o in others) >= 4.8), default=0)

    for text, own, example in zip(texts, words, take_apart(texts), strict=True):
        before, after = shared(own, words), shared(own[::-1], [each[::-1] for each in words])
        if before + after >= len(own):
            assert example == Example("", text, "")
        else:
            assert example.content.split() == own[before : len(own) - after]


def test_knn_calibrates_on_bare_examples() -> None:
    """With a template the examples are far nearer to each other than bare prompts are to them."""
    rng = np.random.default_rng(5)
    topics, template = centres(8, dim=64, seed=1), centres(8, dim=64, seed=2)
    content = {i: unit(topics[i] + 0.9 * rng.normal(size=(20, 64)) / 8) for i in range(8)}
    rows = {expert_id(i): unit(content[i] + 1.5 * template[i]) for i in range(8)}
    experts = [LibraryExpert(name, examples=tuple(f"{n} of {name}" for n in range(20))) for name in rows]
    bare = {expert_id(i): content[i] for i in range(8)}
    config = KnnConfig()
    with_template = KnnRouter.load(config, KnnRouter.fit(config, fit_data(experts, rows, "made-up"), no_progress))
    data = fit_data(experts, rows, "made-up", bare)
    calibrated = KnnRouter.load(config, KnnRouter.fit(config, data, no_progress))
    prompts = [(i, q) for i in range(8) for q in unit(topics[i] + 0.9 * rng.normal(size=(10, 64)) / 8)]

    def right(router: KnnRouter) -> float:
        decisions = [(i, router.route(RouteQuery("", q))) for i, q in prompts]
        return float(np.mean([d.experts[0].expert_id == expert_id(i) if d.experts else False for i, d in decisions]))

    assert right(calibrated) > right(with_template) + 0.2
