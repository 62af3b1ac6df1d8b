"""The knn router: its scores against a reference, its calibration, its explanations."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from routers.base import Decision, FitData, LibraryExpert, RouteQuery, no_progress
from routers.errors import BadArtefact, NotFittable
from routers.evaluation.routing_figures import decide, evaluate
from routers.fitting import fit_data
from routers.methods.knn import KnnConfig, KnnRouter
from tests.unit.routers.builders import around, centres, clustered, expert_id, fitted_knn, ids, library_of, unit


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_scikit_learn_neighbours(seed: int) -> None:
    rng = np.random.default_rng(seed)
    k, num_evidence = int(rng.integers(1, 40)), int(rng.integers(1, 6))
    blocks = {expert_id(i): unit(rng.normal(size=(int(rng.integers(1, 20)), 24))) for i in range(12)}
    router = fitted_knn(library_of(blocks), k=k, num_evidence=num_evidence, max_candidates=99, max_neighbours=k)
    rows, owner = np.concatenate(list(blocks.values())), np.repeat(list(blocks), [len(b) for b in blocks.values()])
    query = unit(rng.normal(size=24) + 1.5 * rows[seed])
    search = NearestNeighbors(n_neighbors=min(k, len(rows)), metric="cosine", algorithm="brute")
    distances, found = search.fit(rows.astype(np.float64)).kneighbors(query[None].astype(np.float64))
    cosines = 1 - distances[0]
    expected = {}
    for name in set(owner[found[0]]):
        best = cosines[owner[found[0]] == name][:num_evidence]
        needed = max(len(best), min(num_evidence, len(blocks[name])))
        mean = (best.sum() + cosines[-1] * (needed - len(best))) / needed
        expected[name] = mean + np.clip((best[0] - 0.8) / 0.1, 0, 1) * (best[0] - mean)

    decision = router.route(RouteQuery("", query))

    assert {c.expert_id: c.score for c in decision.candidates} == pytest.approx(expected, abs=1e-5)
    assert [n.similarity for n in decision.neighbours] == pytest.approx(list(cosines), abs=1e-5)


def evidence_of(decision: Decision) -> float:
    """The number that the reason names."""
    return float(decision.reason.split()[1])


@pytest.mark.parametrize("seed", range(3))
def test_evidence_is_the_score_adjusted_by_the_density_of_its_examples(seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = {expert_id(i): unit(rng.normal(size=(int(rng.integers(4, 9)), 16))) for i in range(4)}
    artefact = KnnRouter.fit(KnnConfig(), library_of(blocks), no_progress)
    router = KnnRouter.load(KnnConfig(), artefact)
    usual = {}
    for name, rows in blocks.items():
        cosines = (rows @ rows.T).astype(np.float64)
        np.fill_diagonal(cosines, -1)
        usual[name] = np.sort(cosines, axis=1)[:, -3:].mean(axis=1)
    assert artefact.arrays["crowd"] == pytest.approx(np.concatenate(list(usual.values())), abs=1e-5)
    for query in unit(rng.normal(size=(20, 16)) + np.concatenate(list(blocks.values()))[:20].mean(axis=0)):
        decision = router.route(RouteQuery("", query))
        best = decision.candidates[0]
        cosines = blocks[best.expert_id] @ query
        near = np.argsort(-cosines)[:3]
        if cosines.max() > 0.8:
            continue
        expected = best.score + 0.5 * (best.score - usual[best.expert_id][near].mean())
        assert evidence_of(decision) == pytest.approx(expected, abs=6e-4)


def test_an_expert_of_unlike_prompts_need_not_be_met_as_closely_as_one_of_alike() -> None:
    """The same score is enough for the one whose own examples score no more, and too little for the other."""
    directions = centres(4, dim=256)
    data = library_of({expert_id(i): around(d, 40, (0.5, 0.5, 0.5, 2.0)[i], seed=i) for i, d in enumerate(directions)})
    router = fitted_knn(data)
    loose = [router.route(RouteQuery("", q)) for q in around(directions[3], 50, 2.0, seed=9)]
    lost = [router.route(RouteQuery("", q)) for q in around(directions[0], 50, 2.0, seed=9)]
    score, unlike = (np.mean([d.candidates[0].score for d in decisions]) for decisions in (lost, loose))
    assert score > unlike
    gain, gain_of_unlike = (np.mean([evidence_of(d) for d in decisions]) for decisions in (lost, loose))
    assert gain - score < -0.05 < gain_of_unlike - unlike
    assert np.mean([d.abstained for d in loose]) < 0.2


def test_restriction_equals_a_library_of_the_allowed() -> None:
    data = clustered(num_experts=9, noise=1.5)
    allowed = frozenset(expert_id(i) for i in (1, 4, 7))
    part = library_of({name: rows for name, rows in data.embeddings.items() if name in allowed})
    whole, small = fitted_knn(data, threshold=0.1), fitted_knn(part, threshold=0.1)
    for query in around(centres(9)[2], 20, 2.0):
        restricted = whole.route(RouteQuery("", query, allowed))
        direct = small.route(RouteQuery("", query))
        assert ids(restricted.candidates) == ids(direct.candidates)
        assert [c.score for c in restricted.candidates] == pytest.approx([c.score for c in direct.candidates], abs=1e-6)
        assert [n.example for n in restricted.neighbours] == [n.example for n in direct.neighbours]


@pytest.mark.parametrize("num_examples", [1, 2, 3, 8, 32])
def test_routes_known_and_abstains_on_out_of_scope_prompts_with_few_or_many_examples(num_examples: int) -> None:
    directions = centres(12, dim=128)
    data = library_of({expert_id(i): around(directions[i], num_examples, 0.7, seed=i) for i in range(10)})
    router = fitted_knn(data)
    inside = np.concatenate([around(directions[i], 20, 0.7, seed=100 + i) for i in range(10)])
    outside = np.concatenate([around(directions[i], 20, 0.7, seed=200 + i) for i in (10, 11)])
    decisions = decide(router, [""] * 240, np.concatenate([inside, outside]))
    labels = [expert_id(i) for i in range(10) for _ in range(20)] + [None] * 40
    figures = evaluate(decisions, labels)
    assert figures.top1_accuracy >= 0.95
    assert figures.abstention_rate >= 0.95
    assert figures.auroc > 0.97


def test_one_expert_alone_is_chosen_for_its_own_and_not_for_others() -> None:
    directions = centres(2, dim=64)
    router = fitted_knn(library_of({"only@00000000": around(directions[0], 10, 0.5)}))
    assert ids(router.route(RouteQuery("", around(directions[0], 1, 0.5, seed=9)[0])).experts) == ["only@00000000"]
    assert router.route(RouteQuery("", directions[1])).abstained


def test_hundreds_of_experts_with_one_example() -> None:
    directions = centres(400, dim=128)
    router = fitted_knn(library_of({expert_id(i): directions[i : i + 1] for i in range(400)}))
    decisions = [router.route(RouteQuery("", around(d, 1, 0.3)[0])) for d in directions]
    assert sum(ids(d.experts) == [expert_id(i)] for i, d in enumerate(decisions)) > 390


def test_near_duplicates_do_not_raise_the_bar() -> None:
    """A template with other blanks scores 0.99 against its siblings; a new phrasing must still be accepted."""
    directions = centres(4, dim=64)
    blocks = {}
    for i in range(4):
        phrasings = around(directions[i], 6, 0.6, seed=i)
        blocks[expert_id(i)] = np.concatenate([around(p, 6, 0.05, seed=j) for j, p in enumerate(phrasings)])
    router = fitted_knn(library_of(blocks))
    new = [around(directions[i], 20, 0.6, seed=50 + i) for i in range(4)]
    decisions = decide(router, [""] * 80, np.concatenate(new))
    assert evaluate(decisions, [expert_id(i) for i in range(4) for _ in range(20)]).top1_accuracy >= 0.95


def test_copies_of_an_example_count_once() -> None:
    rows = around(centres(1)[0], 3, 1.0)
    repeated = LibraryExpert("a@00000000", examples=("x", "x", "x", "y", "z"))
    once = LibraryExpert("a@00000000", examples=("x", "y", "z"))
    long = fit_data([repeated], {"a@00000000": rows[[0, 0, 0, 1, 2]]}, "made-up")
    short = fit_data([once], {"a@00000000": rows}, "made-up")
    query = RouteQuery("", rows[0])
    assert fitted_knn(long).route(query) == fitted_knn(short).route(query)


def test_an_expert_of_unlike_examples_is_found_by_each_of_them() -> None:
    unlike = centres(4, dim=64, seed=3)
    alike = {expert_id(i): around(centres(3, dim=64)[i], 10, 0.5, seed=i) for i in range(3)}
    router = fitted_knn(library_of({"mixed@00000000": unlike} | alike))
    for example in unlike:
        assert ids(router.route(RouteQuery("", around(example, 1, 0.1)[0])).experts) == ["mixed@00000000"]


def test_threshold_of_the_config_wins() -> None:
    data = clustered()
    near = RouteQuery("", around(centres(5)[0], 1, 0.6, seed=77)[0])
    assert not fitted_knn(data).route(near).abstained
    assert fitted_knn(data, threshold=2.0).route(near).abstained
    far = RouteQuery("", -data.embeddings[expert_id(0)][0])
    assert not fitted_knn(data, threshold=-2.0).route(far).abstained


def test_lower_share_of_known_prompts_abstains_more() -> None:
    data = clustered(noise=2.0)
    queries = [RouteQuery("", q) for q in around(centres(5)[0], 100, 2.0, seed=7)]
    routers = [fitted_knn(data, in_library_share=share) for share in (0.98, 0.9, 0.3)]
    abstained = [sum(router.route(query).abstained for query in queries) for router in routers]
    assert abstained == sorted(abstained)
    assert abstained[0] < abstained[-1]


def test_confidence_grows_with_evidence() -> None:
    data = clustered(num_experts=4, noise=0.4)
    router = fitted_knn(data)
    own, other = unit(data.embeddings[expert_id(0)].mean(axis=0)), centres(1, seed=99)[0]
    mixtures = [unit(own * (1 - part) + other * part) for part in np.linspace(0, 1, 11)]
    decisions = [router.route(RouteQuery("", m)) for m in mixtures]
    confidences = [d.confidence for d in decisions if d.candidates[0].expert_id == expert_id(0)]
    assert len(confidences) > 5
    assert all(after <= before + 0.01 for before, after in pairwise(confidences))
    assert confidences[0] > 0.9
    assert decisions[-1].confidence < 0.1


def test_twins_are_told_apart_with_low_confidence() -> None:
    direction = centres(1, dim=64)[0]
    twins = {expert_id(i): around(direction, 20, 0.3, seed=i) for i in range(2)}
    other = {expert_id(2): around(centres(1, dim=64, seed=5)[0], 20, 0.3)}
    decision = fitted_knn(library_of(twins | other)).route(RouteQuery("", direction))
    assert not decision.abstained
    assert 0.2 < decision.confidence < 0.75


def test_abstains_without_a_usable_embedding() -> None:
    router = fitted_knn(clustered())
    for embedding in (None, np.full(32, np.nan, dtype=np.float32)):
        decision = router.route(RouteQuery("text", embedding))
        assert decision.abstained
        assert decision.confidence == 0
    with pytest.raises(ValueError, match="shape"):
        router.route(RouteQuery("", np.ones(7, dtype=np.float32)))


def test_experts_without_examples_are_left_alone() -> None:
    data = clustered(num_experts=3)
    bare = LibraryExpert("bare@00000000")
    more = fit_data([*data.experts, bare], data.embeddings, "made-up")
    query = RouteQuery("", data.embeddings[expert_id(1)][0])
    assert fitted_knn(more).route(query) == fitted_knn(data).route(query)


def test_explains_within_its_bounds() -> None:
    decision = fitted_knn(clustered(20), max_candidates=2, max_neighbours=4, k=100).route(RouteQuery("", centres(1)[0]))
    assert len(decision.candidates) == 2
    assert len(decision.neighbours) == 4
    assert decision.candidates[0].expert_id in decision.reason
    assert all(n.example.endswith(n.expert_id) for n in decision.neighbours)


def test_refuses_examples_without_embeddings() -> None:
    expert = LibraryExpert("a@00000000", examples=("x",))
    with pytest.raises(NotFittable, match="a@00000000"):
        KnnRouter.fit(KnnConfig(), FitData((expert,), {}, "made-up", "v"), no_progress)


def test_refuses_foreign_and_inconsistent_artefacts() -> None:
    good = KnnRouter.fit(KnnConfig(), clustered(), no_progress)
    bad = [
        replace(good, router="other"),
        replace(good, data={}),
        replace(good, arrays={"embeddings": good.arrays["embeddings"]}),
        replace(good, arrays={**good.arrays, "owner": good.arrays["owner"] + 100}),
        replace(good, arrays={**good.arrays, "crowd": good.arrays["crowd"][1:]}),
        replace(good, arrays={name: array for name, array in good.arrays.items() if name != "crowd"}),
        replace(good, arrays={**good.arrays, "embeddings": good.arrays["embeddings"][1:]}),
        replace(good, data={**good.data, "calibration": ["high", 1, 1]}),
    ]
    for artefact in bad:
        with pytest.raises(BadArtefact):
            KnnRouter.load(KnnConfig(), artefact)


def test_calibration_reports_progress_and_is_bounded() -> None:
    steps: list[tuple[int, int]] = []
    KnnRouter.fit(KnnConfig(max_calibration=50), clustered(40, 10), lambda done, total: steps.append((done, total)))
    assert steps[-1] == (50, 50)
