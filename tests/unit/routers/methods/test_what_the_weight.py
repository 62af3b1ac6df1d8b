"""The five weightings against their formulas by other means, and how they are combined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from routers.base import (
    Decision,
    FitData,
    GateChoice,
    LibraryExpert,
    RouteQuery,
    Sample,
    ScoreTable,
    TaskWindow,
    no_progress,
)
from routers.errors import BadArtefact, NotFittable
from routers.fitting import fit_data
from routers.methods.what_the_weight import WhatTheWeightConfig, WhatTheWeightRouter
from routers.text.pair_tfidf import PairTfidf, count_terms
from tests.unit.routers.builders import around, centres, expert_id, ids, library_of, unit


def fitted(data: FitData, **options: object) -> WhatTheWeightRouter:
    config = WhatTheWeightConfig.model_validate(options)
    return WhatTheWeightRouter.load(config, WhatTheWeightRouter.fit(config, data, no_progress))


def chosen(decision: Decision) -> dict[str, float]:
    return {expert.expert_id: expert.weight for expert in decision.experts}


def scores(decision: Decision) -> dict[str, float]:
    return {scored.expert_id: scored.score for scored in decision.candidates}


def best(values: Mapping[str, float], k: int) -> dict[str, float]:
    """The k largest, scaled to sum to one."""
    kept = sorted((name for name, value in values.items() if value > 0), key=lambda name: -values[name])[:k]
    return {name: values[name] / sum(values[other] for other in kept) for name in kept}


# -- sent_sim, uniform --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 3, 10])
def test_sent_sim_is_the_mean_of_all_pairs(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = {
        expert_id(i): unit(rng.normal(size=(int(rng.integers(1, 60)), 10)) + rng.normal(size=10)) for i in range(8)
    }
    prompts = unit(rng.normal(size=(12, 10)))
    window = TaskWindow(("",) * 12, prompts)
    decision = fitted(library_of(blocks), top_k=k).route(RouteQuery("", prompts[-1], None, "t", window))
    means = {n: np.mean([[x @ q for x in b] for q in prompts.astype(np.float64)]) for n, b in blocks.items()}
    assert scores(decision) == pytest.approx({n: m for n, m in means.items() if m > 0}, abs=1e-6)
    assert chosen(decision) == pytest.approx(best(means, k), abs=1e-4)
    assert any(mean < 0 for mean in means.values())


def test_at_most_a_hundred_examples_count() -> None:
    rows = np.repeat(np.eye(1, 4, dtype=np.float32), 300, axis=0)
    rows[1] = [0, 1, 0, 0]  # of 300, every third is taken
    decision = fitted(library_of({expert_id(0): rows})).route(RouteQuery("", rows[0]))
    assert scores(decision) == {expert_id(0): 1.0}


def test_without_a_window_the_prompt_counts_alone_and_out_of_scope_prompts_go_to_the_base() -> None:
    data = library_of({expert_id(i): around(centres(3)[i], 5, 0.3) for i in range(3)})
    assert ids(fitted(data).route(RouteQuery("", centres(3)[1])).candidates)[0] == expert_id(1)
    same_way = library_of({expert_id(i): np.eye(1, 4, dtype=np.float32) for i in range(2)})
    assert fitted(same_way).route(RouteQuery("", -np.eye(1, 4, dtype=np.float32)[0])).abstained


@pytest.mark.parametrize("num_experts", [1, 4, 64, 70])
def test_uniform_takes_all_that_a_recipe_holds(num_experts: int) -> None:
    data = fit_data([LibraryExpert(expert_id(i)) for i in range(num_experts)], {}, "none")
    weights = chosen(fitted(data, scoring="uniform", top_k=2).route(RouteQuery("")))
    held = min(num_experts, 64)
    assert weights == pytest.approx({expert_id(i): 1 / held for i in range(held)})


# -- tfidf --------------------------------------------------------------------------------------------------------

WORDS = ["apple", "bread", "sail", "boat", "sum", "add", "number", "wind", "oven", "the", "of"]


@pytest.mark.parametrize("seed", range(10))
def test_tfidf_of_a_pair_is_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS[:9], int(rng.integers(1, 30)))) + " the" for _ in range(6)]
    text = " ".join(rng.choice([*WORDS, "stranger", "Unseen"], int(rng.integers(4, 30)))) + " wind"
    arrays, terms = count_terms(texts)
    expected = []
    for other in texts:
        rows = TfidfVectorizer(stop_words="english").fit_transform([other, text])
        expected.append((rows @ rows.T).toarray()[0, 1])
    assert PairTfidf(arrays, terms, len(texts)).cosines(text).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("texts", "text"), [(["", "the of"], "apple"), (["apple"], ""), (["apple"], "the"), ([], "x")])
def test_tfidf_without_terms_is_nothing(texts: list[str], text: str) -> None:
    arrays, terms = count_terms(texts)
    assert PairTfidf(arrays, terms, len(texts)).cosines(text).tolist() == [0.0] * len(texts)


def test_tfidf_compares_the_tasks_texts_as_one() -> None:
    examples = {"a": ("red apple", "green apple pie"), "b": ("open the sail", "sail home"), "c": ("add numbers",)}
    experts = [LibraryExpert(f"{name}@00000000", examples=texts) for name, texts in examples.items()]
    blank = {e.expert_id: np.full((len(e.examples), 1), np.nan, np.float32) for e in experts}
    router = fitted(fit_data(experts, blank, "none"), scoring="tfidf", top_k=2)
    window = TaskWindow(("an apple", "sail away", "apple home"), np.full((3, 1), np.nan, np.float32))
    decision = router.route(RouteQuery("apple home", None, None, "t", window))
    expected = {}
    for name, texts in examples.items():
        rows = TfidfVectorizer(stop_words="english").fit_transform(["\n".join(texts), "\n".join(window.texts)])
        expected[f"{name}@00000000"] = (rows @ rows.T).toarray()[0, 1]
    assert expected.pop("c@00000000") == 0
    assert scores(decision) == pytest.approx(expected)
    assert chosen(decision) == pytest.approx(best(expected, 2))
    assert ids(router.route(RouteQuery("add it")).experts) == ["c@00000000"]
    assert router.route(RouteQuery("zebra")).abstained


# -- prior, entropy -----------------------------------------------------------------------------------------------


def scored_library(
    tasks: list[str], losses: np.ndarray, entropies: np.ndarray | None = None, num_experts: int = 4
) -> FitData:
    """Column 0 is the base's, column i + 1 expert i's; the table may know others than the library."""
    models = ("base", *(expert_id(i) for i in range(losses.shape[1] - 1)))
    samples = tuple(Sample(f"prompt {row}", "", task) for row, task in enumerate(tasks))
    blank = np.full(losses.shape, np.nan)
    entropies = losses if entropies is None else entropies
    table = ScoreTable(models, samples, np.zeros((len(tasks), 2), np.float32), blank, blank, losses, entropies)
    experts = [LibraryExpert(expert_id(i)) for i in range(num_experts)]
    return replace(fit_data(experts, {}, "none"), scores=table)


def smoothed_posterior(losses: np.ndarray) -> np.ndarray:
    """0.3 Σ 0.7^(n - i) p_i with the first sample's weight 0.7^(n - 1), as pandas' ewm(alpha=0.3, adjust=False)."""
    each = np.exp(-losses) / np.exp(-losses).sum(axis=1, keepdims=True)
    weights = 0.3 * 0.7 ** np.arange(len(each) - 1, -1, -1)
    weights[0] = 0.7 ** (len(each) - 1)
    assert weights.sum() == pytest.approx(1)
    return np.asarray(weights @ each)


@pytest.mark.parametrize("seed", range(3))
def test_prior_is_a_smoothed_posterior_for_each_task(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tasks = rng.permutation(["a"] * 7 + ["b"] * 130 + ["c"]).tolist()
    losses = rng.gamma(2.0, 1.0, (len(tasks), 5))
    router = fitted(scored_library(tasks, losses), scoring="prior", top_k=3)
    every = []
    for task in "abc":
        own = losses[[row for row, other in enumerate(tasks) if other == task], 1:][:100]
        expected = {expert_id(i): float(p) for i, p in enumerate(smoothed_posterior(own))}
        every.append(expected)
        decision = router.route(RouteQuery("", task_id=task))
        assert scores(decision) == pytest.approx(expected)
        assert chosen(decision) == pytest.approx(best(expected, 3))
    mean = {name: np.mean([one[name] for one in every]) for name in every[0]}
    for task_id in (None, "unknown"):
        assert scores(router.route(RouteQuery("", task_id=task_id))) == pytest.approx(mean)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_entropy_weighs_the_surest_by_what_the_others_lack(k: int) -> None:
    rng = np.random.default_rng(k)
    tasks = ["a", "b"] * 20
    entropies = rng.gamma(2.0, 1.0, (40, 5))
    router = fitted(scored_library(tasks, np.full((40, 5), np.nan), entropies), scoring="entropy", top_k=k)
    u = entropies[::2, 1:].mean(axis=0)
    surest = np.argsort(u)[:k]
    raw = {expert_id(int(i)): u[surest].sum() - u[i] if k > 1 else 1.0 for i in surest}
    decision = router.route(RouteQuery("", task_id="a"))
    assert list(chosen(decision)) == [expert_id(int(i)) for i in surest]
    assert chosen(decision) == pytest.approx({name: w / sum(raw.values()) for name, w in raw.items()})
    assert scores(decision) == pytest.approx({expert_id(i): -u[i] for i in range(4)})
    assert scores(router.route(RouteQuery(""))) == pytest.approx(
        {expert_id(i): -entropies.mean(axis=0)[i + 1] for i in range(4)}
    )


def test_experts_that_are_equally_certain_of_everything_weigh_the_same() -> None:
    router = fitted(scored_library(["a"], np.zeros((1, 5))), scoring="entropy", top_k=2)
    assert chosen(router.route(RouteQuery(""))) == {expert_id(0): 0.5, expert_id(1): 0.5}


@pytest.mark.parametrize("scoring", ["prior", "entropy"])
def test_candidates_share_the_weight_among_them(scoring: str) -> None:
    rng = np.random.default_rng(1)
    router = fitted(scored_library(["a"] * 5, rng.random((5, 5))), scoring=scoring)
    everybody = scores(router.route(RouteQuery("")))
    allowed = frozenset({expert_id(1), expert_id(3)})
    decision = router.route(RouteQuery("", candidates=allowed))
    assert scores(decision) == {name: score for name, score in everybody.items() if name in allowed}
    assert sum(chosen(decision).values()) == pytest.approx(1)
    assert chosen(router.route(RouteQuery("", candidates=frozenset({expert_id(2)})))) == {expert_id(2): 1.0}


def test_samples_that_not_all_were_asked_are_skipped_and_experts_asked_nothing_are_left_out() -> None:
    rng = np.random.default_rng(2)
    losses = rng.random((6, 4))  # the base and experts 0 to 2; expert 3 is not in the table
    losses[1, 2] = np.nan
    losses[:3, 3] = np.nan
    losses[2, 0] = np.nan  # the base's does not matter
    router = fitted(scored_library(["a"] * 3 + ["b"] * 3, losses), scoring="prior")
    expected = smoothed_posterior(losses[[0, 2], 1:3])
    assert scores(router.route(RouteQuery("", task_id="a"))) == pytest.approx(
        {expert_id(0): expected[0], expert_id(1): expected[1]}
    )
    assert set(scores(router.route(RouteQuery("", task_id="b")))) == {expert_id(0), expert_id(1), expert_id(2)}
    assert set(scores(router.route(RouteQuery("")))) == {expert_id(0), expert_id(1)}


def test_a_task_of_which_nothing_is_known_goes_by_the_others() -> None:
    losses = np.array([[1, 2, 3, 4, 5], [np.nan] * 5])
    router = fitted(scored_library(["a", "b"], losses), scoring="prior")
    assert router.route(RouteQuery("", task_id="b")) == router.route(RouteQuery("", task_id="a"))


@pytest.mark.parametrize("scoring", ["prior", "entropy"])
def test_what_is_missing_is_named(scoring: str) -> None:
    unknown = scored_library(["a"], np.full((1, 5), np.nan))
    elsewhere = replace(scored_library(["a"], np.ones((1, 5))), experts=(LibraryExpert("other@00000000"),))
    for data in (unknown, replace(unknown, scores=None), elsewhere):
        with pytest.raises(NotFittable, match="table of scores") as caught:
            fitted(data, scoring=scoring)
        assert caught.value.need == "losses"


# -- all ----------------------------------------------------------------------------------------------------------


def test_a_mix_or_the_mean_of_a_and_b_with_the_same_weights() -> None:
    data = library_of({expert_id(i): around(centres(3)[i], 5, 0.9, i) for i in range(3)})
    query = RouteQuery("", unit(centres(3).sum(axis=0)))
    mixture, fusion = (fitted(data, combine=way).route(query) for way in ("mixture", "fusion"))
    assert chosen(mixture) == chosen(fusion)
    assert (mixture.gate, fusion.gate) == (None, GateChoice("fixed", aggregation="ab"))


def test_an_artefact_of_another_scoring_or_shape_is_refused() -> None:
    data = library_of({expert_id(i): around(centres(3)[i], 5, 0.9, i) for i in range(3)})
    config = WhatTheWeightConfig()
    artefact = WhatTheWeightRouter.fit(config, data, no_progress)
    with pytest.raises(BadArtefact, match="sent_sim"):
        WhatTheWeightRouter.load(WhatTheWeightConfig(scoring="uniform"), artefact)
    with pytest.raises(BadArtefact):
        WhatTheWeightRouter.load(config, replace(artefact, arrays={"means": np.zeros((2, 4), np.float32)}))
    with pytest.raises(BadArtefact):
        WhatTheWeightRouter.load(config, replace(artefact, data={"experts": []}))
    prior = WhatTheWeightConfig(scoring="prior")
    table = WhatTheWeightRouter.fit(prior, scored_library(["a"], np.ones((1, 5))), no_progress)
    with pytest.raises(BadArtefact):
        WhatTheWeightRouter.load(prior, replace(table, arrays={"table": np.zeros((1, 4))}))
