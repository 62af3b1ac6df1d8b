"""What every registered router promises, whatever its method. A new router joins by being registered.

Routers of third parties can run this suite over themselves: it needs nothing but their entry point.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from routers import methods
from routers.artefacts import ArtefactStore, load_artefact, save_artefact
from routers.base import (
    Artefact,
    AsksBase,
    FitData,
    LibraryExpert,
    MethodCard,
    RouteQuery,
    Router,
    RouterConfig,
    Sample,
    ScoreTable,
    Standing,
    TaskWindow,
    no_progress,
)
from routers.embedders.hashing import HashingEncoder
from routers.errors import BadArtefact, BadRouterConfig
from routers.fitting import LACKING, fit_data, fit_policy
from routers.registry import make_config, router_class, router_names
from routers.text.segments import parts_of

ENCODER = HashingEncoder(64)

TOPICS = {
    "cook@00000001": ["bake a loaf of bread", "roast carrots in the oven", "bake an apple pie", "roast a chicken"],
    "sail@00000002": ["hoist the main sail", "reef the sail in strong wind", "anchor the boat", "steer the boat home"],
    "math@00000003": ["add two fractions", "divide the fractions", "add three numbers", "multiply numbers by two"],
    "solo@00000004": ["paint the fence green"],
    "bare@00000005": [],
}

PROMPTS = [
    "bake a carrot pie",
    "reef the main sail of the boat",
    "add and divide numbers",
    "paint a fence",
    "who won the election",
    "",
    "bake bread on the boat",
]

AnyRouter = Callable[[FitData], Router]


def library(topics: dict[str, list[str]] = TOPICS) -> FitData:
    experts = [
        LibraryExpert(name, f"knows to {name[:4]}", (name[:4],), tuple(examples)) for name, examples in topics.items()
    ]
    data = fit_data(experts, {name: ENCODER.encode(examples) for name, examples in topics.items()}, ENCODER.name)
    samples = tuple(
        Sample(text, text.upper(), name.partition("@")[0]) for name, texts in sorted(TOPICS.items()) for text in texts
    )
    scores = table(sorted(topics), samples)
    return replace(data, scores=scores, samples=samples, losses=losses, embed=ENCODER.encode)


def table(experts: list[str], samples: tuple[Sample, ...]) -> ScoreTable:
    """Experts are right on their own prompts, and on one of three others; the base on one of five."""
    models = ("base", *experts)
    right = np.zeros((len(samples), len(models)))
    for row, sample in enumerate(samples):
        right[row, 0] = row % 5 == 0
        for column, expert in enumerate(experts, 1):
            right[row, column] = sample.task == expert.partition("@")[0] or (row + column) % 3 == 0
    embeddings = ENCODER.encode([sample.prompt for sample in samples])
    return ScoreTable(models, samples, embeddings, right, 1.5 - right, 3 - right, 2 - right)


def losses(weights: Mapping[str, float], samples: Sequence[Sample], formula: str = "exact") -> np.ndarray:
    """Least where each sample's own expert has weight one."""
    own = [sum(w for expert, w in weights.items() if expert.partition("@")[0] == s.task) for s in samples]
    return np.abs(np.array(own) - 1.0) + 0.1 * sum(abs(w) for w in weights.values())


def query(prompt: str, candidates: frozenset[str] | None = None) -> RouteQuery:
    embedding = ENCODER.encode([prompt])[0]
    window = TaskWindow((prompt,), embedding[None])
    wanted = {"cook": 0.7, "sail": 0.3, "gone": 1.0}
    parts = ENCODER.encode(parts_of(prompt))
    return RouteQuery(prompt, embedding, candidates, "cook", window, wanted, parts=parts)


def fit(name: str, data: FitData) -> tuple[Router, Artefact]:
    config = make_config(name, {})
    artefact = fit_policy(name, config, data)
    return router_class(name).load(config, artefact), artefact


@pytest.fixture(params=router_names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@cache
def fitted(name: str) -> Router:
    return fit(name, library())[0]


@pytest.fixture
def router(name: str) -> Router:
    return fitted(name)


# -- what a router is ---------------------------------------------------------------------------------------------


def test_describes_itself(name: str) -> None:
    found = router_class(name)
    assert isinstance(found.card, MethodCard)
    assert found.card.name == name
    assert all([found.card.title, found.card.paper, found.card.cost, found.__doc__])
    assert issubclass(found.config_class, RouterConfig)
    assert all(field.description for field in found.config_class.model_fields.values())


def test_the_table_of_methods_says_how_each_stands(name: str) -> None:
    card = router_class(name).card
    assert card.standing in get_args(Standing)
    if router_class(name).__module__.startswith("routers.methods."):
        row = rf"^    {name} +{card.standing} +{re.escape(card.title)}$"
        assert re.search(row, methods.__doc__ or "", re.MULTILINE)


def test_an_unknown_option_is_refused_by_name(name: str) -> None:
    with pytest.raises(BadRouterConfig, match="no_such_option"):
        make_config(name, {"no_such_option": 1})


def test_is_a_router(router: Router) -> None:
    assert isinstance(router, Router)


def test_what_it_needs_is_named_when_it_is_missing(name: str) -> None:
    assert set(router_class(name).card.needs) <= LACKING.keys()


@pytest.mark.parametrize("answer", ["", "no such choice", "\0", "cook"])
def test_a_question_has_choices_that_the_caller_may_see(router: Router, answer: str) -> None:
    assert router.card.asks_base == isinstance(router, AsksBase)
    if not isinstance(router, AsksBase):
        return
    allowed = frozenset(list(TOPICS)[:2])
    asked = query("bake bread", allowed)
    question = router.question(asked)
    assert question is not None
    assert question.choices
    for hidden in TOPICS.keys() - allowed:
        assert hidden.partition("@")[0] not in question.prompt + " ".join(question.choices)
    for given in (*question.choices, answer):
        decision = router.route(replace(asked, answer=given))
        assert {each.expert_id for each in decision.experts} <= allowed


# -- what a decision is -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", PROMPTS)
def test_decisions_are_well_formed(router: Router, prompt: str) -> None:
    decision = router.route(query(prompt))
    assert 0 <= decision.confidence <= 1
    assert decision.abstained == (not decision.experts)
    assert decision.reason
    assert all(chosen.expert_id in TOPICS and np.isfinite(chosen.weight) for chosen in decision.experts)
    assert len({chosen.expert_id for chosen in decision.experts}) == len(decision.experts)
    scores = [scored.score for scored in decision.candidates]
    assert scores == sorted(scores, reverse=True)
    assert len({scored.expert_id for scored in decision.candidates}) == len(decision.candidates)
    similarities = [neighbour.similarity for neighbour in decision.neighbours]
    assert similarities == sorted(similarities, reverse=True)
    assert all(neighbour.example in TOPICS[neighbour.expert_id] for neighbour in decision.neighbours)


def test_is_deterministic_across_calls_and_fits(name: str, router: Router) -> None:
    again = fit(name, library())[0]
    for prompt in PROMPTS:
        assert router.route(query(prompt)) == router.route(query(prompt)) == again.route(query(prompt))


def test_order_of_the_experts_does_not_matter(name: str, router: Router) -> None:
    shuffled = list(TOPICS.items())
    random.Random(3).shuffle(shuffled)
    data = library(dict(shuffled))
    backwards = replace(data, experts=tuple(reversed(data.experts)))
    for other in (fit(name, data)[0], fit(name, backwards)[0]):
        for prompt in PROMPTS:
            assert other.route(query(prompt)) == router.route(query(prompt))


def test_a_query_is_not_changed(router: Router) -> None:
    asked = query("bake bread")
    assert asked.embedding is not None
    before = asked.embedding.copy()
    asked.embedding.flags.writeable = False
    router.route(asked)
    np.testing.assert_array_equal(asked.embedding, before)


def test_eight_threads_decide_like_one(router: Router) -> None:
    asked = [query(prompt, allowed) for prompt in PROMPTS for allowed in (None, frozenset(list(TOPICS)[:2]))] * 20
    expected = [router.route(each) for each in asked]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(router.route, asked)) == expected


# -- who may be shown ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_nobody_outside_the_candidates_is_chosen_scored_or_quoted(router: Router, seed: int) -> None:
    rng = random.Random(seed)
    allowed = frozenset(rng.sample([*TOPICS, "gone@99999999"], rng.randint(1, 5)))
    for prompt in PROMPTS:
        decision = router.route(query(prompt, allowed))
        shown = [*decision.experts, *decision.candidates, *decision.neighbours]
        assert {each.expert_id for each in shown} <= allowed
        for hidden in TOPICS.keys() - allowed:
            assert hidden not in decision.reason
            assert hidden.partition("@")[0] not in decision.reason.split()


def test_all_candidates_are_as_good_as_none_given(router: Router) -> None:
    for prompt in PROMPTS:
        assert router.route(query(prompt, frozenset(TOPICS))) == router.route(query(prompt))


@pytest.mark.parametrize("candidates", [frozenset(), frozenset({"gone@99999999"})])
def test_abstains_without_a_candidate(router: Router, candidates: frozenset[str]) -> None:
    decision = router.route(query("bake bread", candidates))
    assert decision.abstained
    assert not decision.candidates
    assert not decision.neighbours


@pytest.mark.parametrize("topics", [{}, {"bare@00000005": []}])
def test_abstains_with_an_empty_library(name: str, topics: dict[str, list[str]]) -> None:
    if topics and "examples" not in router_class(name).card.needs:
        pytest.skip("needs no examples, so an expert without them is a choice")
    decision = fit(name, library(topics))[0].route(query("bake bread"))
    assert decision.abstained
    assert decision.confidence == 0


def test_abstains_when_it_needs_an_embedding_and_has_none(router: Router) -> None:
    if router.card.needs_embedding:
        assert router.route(RouteQuery("bake bread")).abstained


# -- what is stored -----------------------------------------------------------------------------------------------


def test_an_artefact_says_where_it_comes_from_and_holds_plain_data(name: str) -> None:
    data = library()
    _, artefact = fit(name, data)
    assert (artefact.router, artefact.library_version, artefact.embedder) == (name, data.version, data.embedder)
    assert json.loads(json.dumps(dict(artefact.data), allow_nan=False)) == dict(artefact.data)
    assert all(isinstance(array, np.ndarray) and array.dtype != object for array in artefact.arrays.values())


@pytest.mark.parametrize("topics", [TOPICS, {}])
def test_decides_the_same_after_saving_and_loading(name: str, topics: dict[str, list[str]], tmp_path: Path) -> None:
    router, artefact = fit(name, library(topics))
    save_artefact(artefact, tmp_path / "artefact")
    ArtefactStore(tmp_path / "store").publish("auto", artefact)
    published = ArtefactStore(tmp_path / "store").current("auto")
    assert published is not None
    for stored in (load_artefact(tmp_path / "artefact"), published):
        loaded = router_class(name).load(make_config(name, {}), stored)
        for prompt in PROMPTS:
            assert loaded.route(query(prompt)) == router.route(query(prompt))


def test_refuses_another_methods_artefact(name: str) -> None:
    _, artefact = fit(name, library())
    with pytest.raises(BadArtefact):
        router_class(name).load(make_config(name, {}), replace(artefact, router="another"))


def test_fitting_leaves_the_library_as_it_was(name: str) -> None:
    data = library()
    before = {key: rows.copy() for key, rows in data.embeddings.items()}
    for rows in data.embeddings.values():
        rows.flags.writeable = False
    router_class(name).fit(make_config(name, {}), data, no_progress)
    for key, rows in before.items():
        np.testing.assert_array_equal(data.embeddings[key], rows)
