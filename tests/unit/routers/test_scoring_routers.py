"""Routers that score experts, each against its formula by other means, on random libraries."""

from __future__ import annotations

from dataclasses import replace

import faiss
import numpy as np
import pytest

from routers.base import Artefact, Decision, FitData, GateChoice, LibraryExpert, RouteQuery, Router, no_progress
from routers.families.scoring import Prompts
from routers.fitting import fit_data
from routers.methods.two_part import TwoPartRouter
from routers.registry import make_config, router_class
from tests.unit.routers.builders import around, centres, clustered, expert_id, ids, library_of, unit


def fitted(name: str, data: FitData, **options: object) -> Router:
    config = make_config(name, options)
    return router_class(name).load(config, router_class(name).fit(config, data, no_progress))


def random_library(seed: int, num_experts: int = 9, dim: int = 24, most: int = 40) -> FitData:
    rng = np.random.default_rng(seed)
    blocks = {
        expert_id(i): unit(rng.normal(size=(int(rng.integers(1, most)), dim)) + rng.normal(size=dim))
        for i in range(num_experts)
    }
    return library_of(blocks)


def ask(router: Router, seed: int, dim: int = 24) -> tuple[np.ndarray, dict[str, float]]:
    query = unit(np.random.default_rng(seed + 1000).normal(size=dim))
    decision = router.route(RouteQuery("", query))
    return query.astype(np.float64), {scored.expert_id: scored.score for scored in decision.candidates}


@pytest.mark.parametrize("seed", range(4))
def test_centroid_is_the_mean_pairwise_cosine(seed: int) -> None:
    data = random_library(seed)
    query, scores = ask(fitted("centroid", data, max_candidates=99), seed)
    expected = {
        name: np.mean([row.astype(np.float64) @ query for row in rows]) for name, rows in data.embeddings.items()
    }
    assert scores == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_lora_retriever_compares_directions_of_at_most_twenty_examples(seed: int) -> None:
    data = random_library(seed, most=21)
    query, scores = ask(fitted("lora_retriever", data, max_candidates=99), seed)
    means = {name: rows.astype(np.float64).mean(axis=0) for name, rows in data.embeddings.items()}
    assert scores == pytest.approx({n: m @ query / np.linalg.norm(m) for n, m in means.items()}, abs=1e-6)


def test_lora_retriever_takes_twenty_examples_evenly() -> None:
    router = fitted("lora_retriever", library_of({expert_id(0): np.repeat(np.eye(2, 8), [20, 30], axis=0)}))
    decision = router.route(RouteQuery("", np.eye(1, 8, dtype=np.float32)[0]))
    assert decision.candidates[0].score == pytest.approx(8 / np.hypot(8, 12), abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_airoboros_is_faiss_flat_l2_averaged(seed: int) -> None:
    data = random_library(seed, most=60)
    query, scores = ask(fitted("airoboros", data, k=20, max_candidates=99), seed)
    expected = {}
    for name, rows in data.embeddings.items():
        index = faiss.IndexFlatL2(rows.shape[1])
        index.add(rows)
        distances, _ = index.search(query[None].astype(np.float32), min(20, len(rows)))
        expected[name] = 1 - distances.mean() / 2
    assert scores == pytest.approx(expected, abs=1e-5)


def test_molora_finds_the_clusters_of_each_expert() -> None:
    directions = centres(6, dim=32)
    blocks = {
        expert_id(i): np.concatenate(
            [around(directions[2 * i], 9, 0.2, i), around(directions[2 * i + 1], 9, 0.2, 9 + i)]
        )
        for i in range(3)
    }
    router = fitted("molora", library_of(blocks), num_centres=2)
    one = fitted("molora", library_of(blocks), num_centres=1)
    for number, direction in enumerate(directions):
        decision = router.route(RouteQuery("", direction))
        assert decision.experts[0].expert_id == expert_id(number // 2)
        assert decision.candidates[0].score > 0.95 > one.route(RouteQuery("", direction)).candidates[0].score


TEXTS = {
    "a": ["the red apple", "an apple a day", "red red wine"],
    "b": ["select name from users", "select count from orders"],
    "c": ["turn the light on"],
}


def test_tfidf_is_the_formula() -> None:
    blank = {expert_id(i): np.zeros((len(TEXTS[n]), 1), np.float32) for i, n in enumerate(TEXTS)}
    experts = [LibraryExpert(expert_id(i), examples=tuple(TEXTS[name])) for i, name in enumerate(TEXTS)]
    router = fitted("tfidf", fit_data(experts, blank, "made-up"), longest=1, max_candidates=9)
    documents = [text.split() for texts in TEXTS.values() for text in texts]
    terms = sorted({word for document in documents for word in document})
    idf = {t: np.log((1 + len(documents)) / (1 + sum(t in d for d in documents))) + 1 for t in terms}

    def vector(words: list[str]) -> np.ndarray:
        row = np.array([(1 + np.log(words.count(t))) * idf[t] if t in words else 0.0 for t in terms])
        return row / (np.linalg.norm(row) or 1.0)

    query = "select the red red apple quickly"
    expected = {}
    for number, texts in enumerate(TEXTS.values()):
        mean = np.mean([vector(text.split()) for text in texts], axis=0)
        expected[expert_id(number)] = vector(query.split()) @ mean / np.linalg.norm(mean)
    decision = router.route(RouteQuery(query))
    assert {s.expert_id: s.score for s in decision.candidates} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("num_experts", [2, 3, 7])
def test_classifier_is_at_the_optimum_of_its_loss(num_experts: int) -> None:
    data = random_library(num_experts, num_experts, most=30)
    config = make_config("classifier", {"inverse_regularisation": 5.0})
    arrays = router_class("classifier").fit(config, data, no_progress).arrays
    names = sorted(data.embeddings)
    x = np.concatenate([data.embeddings[name] for name in names]).astype(np.float64)
    owner = np.repeat(np.arange(num_experts), [len(data.embeddings[name]) for name in names])
    logits = x @ arrays["weights"].T.astype(np.float64) + arrays["bias"]
    probability = np.exp(logits - logits.max(axis=1, keepdims=True))
    probability /= probability.sum(axis=1, keepdims=True)
    weight = len(owner) / (num_experts * np.bincount(owner))[owner]
    ridge = 2 if num_experts == 2 else 1  # scikit-learn penalises the one row that it has, w; we hold ±w/2
    slope = 5.0 * ((probability - np.eye(num_experts)[owner]) * weight[:, None]).T @ x + ridge * arrays["weights"]
    assert np.abs(slope).max() < 0.05 * 5.0


def chosen(decision: Decision) -> dict[str, float]:
    return {expert.expert_id: expert.weight for expert in decision.experts}


def test_what_is_executed_follows_the_options() -> None:
    data = clustered(num_experts=7, noise=0.5)
    query = RouteQuery("", centres(7)[3])
    first = ids(fitted("centroid", data).route(query).candidates)
    assert chosen(fitted("centroid", data).route(query)) == {first[0]: 1.0}
    mixture = fitted("lora_retriever", data).route(query)
    assert (chosen(mixture), mixture.gate) == (dict.fromkeys(first[:3], 1 / 3), None)
    soup = fitted("adapter_soup", data).route(query)
    assert chosen(soup) == pytest.approx(dict.fromkeys(first[:5], 1 / 5))
    assert soup.gate == GateChoice("uniform", aggregation="ab")
    arrow = fitted("arrow", data, num_retrieved=6, k=3).route(query)
    assert (list(chosen(arrow)), arrow.gate) == (first[:6], GateChoice("arrow", 3))
    molora = fitted("molora", data, selection="mixture", top_k=7, temperature=0.1).route(query)
    scores = np.array([scored.score for scored in molora.candidates]) / 0.1
    assert list(chosen(molora).values()) == pytest.approx(np.exp(scores) / np.exp(scores).sum())


@pytest.mark.parametrize("name", ["centroid", "airoboros", "molora", "lora_retriever", "adapter_soup", "arrow"])
def test_out_of_scope_prompts_are_left_to_the_base(name: str) -> None:
    directions = centres(14, dim=128)
    data = library_of({expert_id(i): around(directions[i], 24, 0.7, i) for i in range(12)})
    router = fitted(name, data)
    known = [router.route(RouteQuery("", q)) for i in range(12) for q in around(directions[i], 5, 0.7, 90 + i)]
    outside = [router.route(RouteQuery("", q)) for i in (12, 13) for q in around(directions[i], 30, 0.7, 90 + i)]
    assert np.mean([decision.abstained for decision in known]) <= 0.1
    assert np.mean([decision.abstained for decision in outside]) >= 0.9


def test_baselines() -> None:
    data = clustered(num_experts=5)
    query = RouteQuery("anything")
    assert fitted("base", data).route(query).abstained
    assert chosen(fitted("uniform", data).route(query)) == pytest.approx(dict.fromkeys(sorted(data.embeddings), 0.2))
    router = fitted("random", data)
    drawn = [next(iter(chosen(router.route(RouteQuery(f"prompt {n}"))))) for n in range(500)]
    assert {name: pytest.approx(100, abs=45) for name in data.embeddings} == {
        n: drawn.count(n) for n in data.embeddings
    }


def close_to(artefact: Artefact, expert: str, prompt: np.ndarray) -> float:
    """|U q|, for the directions that were kept of an expert."""
    directions = artefact.arrays["directions"][artefact.data["experts"].index(expert)]
    return float(np.linalg.norm(directions.astype(np.float64) @ prompt))


# -- evidence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["centroid", "airoboros", "molora"])
def test_evidence_is_adjusted_by_the_winners_expected_score(name: str) -> None:
    data = clustered(num_experts=4, num_examples=15, noise=0.8)
    config = make_config(name, {})
    artefact = router_class(name).fit(config, data, no_progress)
    usual = artefact.data["usual"]
    assert set(usual) == {expert.expert_id for expert in data.experts}
    router = router_class(name).load(config, artefact)
    for query in around(centres(4)[1], 10, 1.5, seed=5):
        decision = router.route(RouteQuery("", query))
        best = decision.candidates[0]
        evidence = best.score
        if name != "airoboros":
            evidence = (best.score + close_to(artefact, best.expert_id, query)) / 2
        expected = evidence + 0.5 * (evidence - usual[best.expert_id])
        assert float(decision.reason.split()[1]) == pytest.approx(expected, abs=6e-4)


def test_the_expected_score_is_the_mean_over_held_out_examples_shrunk_to_that_of_all() -> None:
    """By centroid: folds are dealt out in turn, so each example is compared with the other folds."""
    data = clustered(num_experts=3, num_examples=10, noise=1.2)
    usual = router_class("centroid").fit(make_config("centroid", {}), data, no_progress).data["usual"]
    means = {}
    for name, rows in data.embeddings.items():
        fold = np.arange(10) % 5
        others = [rows[fold != fold[number]] for number in range(10)]
        scores = [row @ rest.mean(axis=0) for row, rest in zip(rows, others, strict=True)]
        spans = [np.linalg.svd(rest, full_matrices=False)[2][:8] for rest in others]
        close = [np.linalg.norm(span @ row) for row, span in zip(rows, spans, strict=True)]
        means[name] = (np.mean(scores) + np.mean(close)) / 2
    overall = np.mean(list(means.values()))
    assert usual == pytest.approx({n: (10 * mean + 3 * overall) / 13 for n, mean in means.items()}, abs=1e-3)


def test_an_expert_added_since_has_the_mean_expected_score() -> None:
    config, kind = make_config("centroid", {}), router_class("centroid")
    before = kind.load(config, kind.fit(config, clustered(60), no_progress))
    grown = replace(clustered(61), previous=before)
    artefact = kind.fit(config, grown, no_progress)
    assert expert_id(60) not in artefact.data["usual"]
    prompt = grown.embeddings[expert_id(60)].mean(axis=0)
    decision = kind.load(config, artefact).route(RouteQuery("", prompt))
    assert ids(decision.candidates)[0] == expert_id(60)
    mean = np.mean(list(artefact.data["usual"].values()))
    evidence = (decision.candidates[0].score + close_to(artefact, expert_id(60), prompt)) / 2
    assert float(decision.reason.split()[1]) == pytest.approx(1.5 * evidence - 0.5 * mean, abs=6e-4)


def test_an_evidence_of_its_own_is_not_adjusted() -> None:
    config = make_config("two_part", {})
    data = replace(clustered(3), embed=lambda texts: around(centres(5)[4], len(texts), 0.5))
    artefact = TwoPartRouter.fit(config, data, no_progress)
    router = TwoPartRouter.load(config, artefact)
    decision = router.route(RouteQuery("", centres(5)[1]))
    judged = router.judge(Prompts([""], centres(5)[1:2]))
    best = judged.scores[0].argmax()
    assert artefact.data["usual"] == {}
    assert float(decision.reason.split()[1]) == pytest.approx(judged.evidence[0, best], abs=6e-4)


def test_the_classifiers_evidence_is_closeness_alone() -> None:
    kind, config = router_class("classifier"), make_config("classifier", {})
    artefact = kind.fit(config, clustered(3), no_progress)
    for query in around(centres(3)[1], 10, 1.5, seed=6):
        decision = kind.load(config, artefact).route(RouteQuery("", query))
        best = decision.candidates[0].expert_id
        expected = 1.5 * close_to(artefact, best, query) - 0.5 * artefact.data["usual"][best]
        assert float(decision.reason.split()[1]) == pytest.approx(expected, abs=6e-4)
