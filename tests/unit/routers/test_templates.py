"""Examples without their template, and what calibrating on them does to the threshold."""

import numpy as np

from routers.base import LibraryExpert, RouteQuery, no_progress
from routers.fitting import fit_data
from routers.knn import KnnConfig, KnnRouter
from routers.templates import bare_texts
from tests.unit.routers.builders import centres, expert_id, unit


def test_words_that_two_siblings_share_are_left_out() -> None:
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
    assert bare_texts(three) == (three[0], "two hundred", "forty two")
    assert bare_texts([]) == ()


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

    assert calibrated.threshold < with_template.threshold
    assert right(calibrated) > right(with_template) + 0.2
