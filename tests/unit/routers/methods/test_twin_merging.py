"""Twin-Merging: its MLP against scikit-learn's, its mix against the sums of matrices that it stands for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler, normalize

from routers.base import FitData, RouteQuery, ScoredExpert, no_progress
from routers.errors import BadArtefact
from routers.evaluation.routing_figures import auroc
from routers.families.calibration import Calibration
from routers.families.scoring import Learned, Prompts
from routers.methods.twin_merging import TwinMergingConfig, TwinMergingRouter
from tests.unit.routers.builders import around, centres, clustered, expert_id, ids, library_of, unit

SMALL = {"hidden_size": 12, "max_candidates": 99, "threshold": -9.0}


def fitted(data: FitData, **options: object) -> TwinMergingRouter:
    config = TwinMergingConfig.model_validate(SMALL | options)
    return TwinMergingRouter.load(config, TwinMergingRouter.fit(config, data, no_progress))


def bare(**options: object) -> TwinMergingRouter:
    """A router that knows nobody, to choose with."""
    return TwinMergingRouter(TwinMergingConfig.model_validate(options), (), Learned(), Calibration(0.0, 1.0, 1.0))


@pytest.mark.parametrize(("num_experts", "num_hidden"), [(2, 1), (2, 2), (3, 1), (7, 2), (4, 3)])
def test_scores_are_the_probabilities_of_scikit_learns_mlp(num_experts: int, num_hidden: int) -> None:
    rng = np.random.default_rng(num_experts)
    offset = rng.normal(size=16)  # hidden states share a large mean
    blocks = {
        expert_id(i): unit(rng.normal(size=(int(rng.integers(3, 20)), 16)) + rng.normal(size=16) + 4 * offset)
        for i in range(num_experts)
    }
    router = fitted(library_of(blocks), num_hidden=num_hidden, epochs=30, min_steps=1, batch_size=8)
    x = np.concatenate(list(blocks.values()))
    owner = np.repeat(list(blocks), [len(rows) for rows in blocks.values()])
    model = MLPClassifier(
        (12,) * num_hidden,
        alpha=1.0,
        batch_size=8,
        learning_rate_init=5e-4,
        max_iter=30,
        n_iter_no_change=30,
        random_state=0,
    )
    with pytest.warns(ConvergenceWarning):
        model.fit((x - x.mean(axis=0)) / x.std(axis=0), owner)
    queries = unit(rng.normal(size=(20, 16)) + 4 * offset)
    expected = model.predict_proba((queries - x.mean(axis=0)) / x.std(axis=0))
    assert np.ptp(expected, axis=0).max() > 0.1
    np.testing.assert_allclose(router.scores(Prompts([""] * 20, queries)), expected, atol=2e-4)


@pytest.mark.parametrize("seed", range(3))
def test_evidence_is_the_cosine_to_the_mean_of_standardised_states(seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = {expert_id(i): unit(rng.normal(size=(9, 16)) + 5 + rng.normal(size=16)) for i in range(4)}
    router = fitted(library_of(blocks), epochs=2, min_steps=1)
    queries = unit(rng.normal(size=(6, 16)) + 5)
    scaler = StandardScaler().fit(np.concatenate(list(blocks.values())).astype(np.float64))
    means = np.stack([normalize(scaler.transform(rows)).mean(axis=0) for rows in blocks.values()])
    expected = normalize(scaler.transform(queries)) @ normalize(means).T
    np.testing.assert_allclose(router.judge(Prompts([""] * 6, queries)).evidence, expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_out_of_scope_prompts_are_detected_among_states_that_all_point_one_way(seed: int) -> None:
    rng = np.random.default_rng(seed)
    common, own = 20 * rng.normal(size=64), centres(5, 64)
    blocks = {expert_id(i): unit(common + 8 * own[i] + rng.normal(size=(40, 64))) for i in range(4)}
    router = fitted(library_of(blocks), threshold=None, hidden_size=64)
    friends, outside = (
        [router.route(RouteQuery("", row)).confidence for row in unit(common + 8 * own[i] + rng.normal(size=(50, 64)))]
        for i in (1, 4)
    )
    assert auroc(friends, outside) > 0.95


def test_it_names_the_expert_and_weights_it_most() -> None:
    directions = centres(4)
    router = fitted(clustered(4, noise=0.8), hidden_size=None)
    for number, direction in enumerate(directions):
        for query in around(direction, 5, 0.8, 70 + number):
            decision = router.route(RouteQuery("", query))
            assert decision.experts[0].expert_id == expert_id(number)
            assert sum(expert.weight for expert in decision.experts) == pytest.approx(1, abs=0.02)
            assert decision.gate is None


@pytest.mark.parametrize("top_k", [None, 1, 2, 3, 6])
@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0])
def test_the_mix_is_shared_plus_weighted_twins(top_k: int | None, scale: float) -> None:
    rng = np.random.default_rng(4)
    updates = rng.normal(size=(6, 5, 7))
    weights = np.sort(rng.dirichlet(np.ones(6)))[::-1]
    shared = scale * updates.sum(axis=0)
    expected = shared + sum(weights[t] * (updates[t] - shared) for t in range(6 if top_k is None else top_k))
    ranked = [ScoredExpert(expert_id(t), float(w)) for t, w in enumerate(weights)]
    mix, gate = bare(top_k=top_k, shared_scale=scale).choose(ranked)
    merged = sum(expert.weight * updates[int(expert.expert_id[7:10])] for expert in mix)
    assert gate is None
    np.testing.assert_allclose(merged, expected, atol=0.005 * 6 * np.abs(updates).max())
    kept = [w + scale * (1 - weights[: top_k or 6].sum()) for w in weights[: top_k or 6]]
    assert [expert.weight for expert in mix][: len(kept)] == pytest.approx([w for w in kept if w >= 0.005])


def test_certainty_uses_the_one_expert_alone() -> None:
    mix, _ = bare().choose([ScoredExpert("a", 1.0), ScoredExpert("b", 0.0), ScoredExpert("c", 0.0)])
    assert [(expert.expert_id, expert.weight) for expert in mix] == [("a", 1.0)]


def test_a_mix_holds_sixty_four_experts() -> None:
    ranked = [ScoredExpert(f"e{n:03d}", 1 / 100) for n in range(100)]
    mix, _ = bare().choose(ranked)
    assert len(mix) == 64
    assert [expert.weight for expert in mix] == pytest.approx([0.3 * (1 - 0.64) + 0.01] * 64)


def test_what_forbidden_experts_would_weigh_falls_to_what_the_others_share() -> None:
    router = fitted(clustered(4, noise=1.5))
    query = centres(4)[1]
    free = {scored.expert_id: scored.score for scored in router.route(RouteQuery("", query)).candidates}
    allowed = frozenset(expert_id(i) for i in (0, 2))
    decision = router.route(RouteQuery("", query, allowed))
    missing = 1 - sum(free[expert] for expert in allowed)
    expected = {expert: free[expert] + 0.3 * missing for expert in allowed}
    assert {expert.expert_id: expert.weight for expert in decision.experts} == pytest.approx(expected)


def test_one_expert_with_examples_is_certain_and_one_without_is_never_used() -> None:
    blocks = {expert_id(0): centres(3, 8), expert_id(1): np.zeros((0, 8), np.float32)}
    decision = fitted(library_of(blocks)).route(RouteQuery("", centres(9, 8)[8]))
    assert [(expert.expert_id, expert.weight) for expert in decision.experts] == [(expert_id(0), 1.0)]
    assert ids(decision.candidates) == [expert_id(0)]


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("w_1", np.zeros((12, 11), np.float32)),
        ("b_2", np.zeros(2, np.float32)),
        ("b_0", np.zeros((12, 1), np.float32)),
        ("classes", np.array([0, 1, 9], np.int32)),
        ("classes", np.array([0, 1], np.int32)),
        ("w_0", None),
    ],
)
def test_bad_artefacts_are_refused(name: str, array: np.ndarray | None) -> None:
    config = TwinMergingConfig.model_validate(SMALL | {"epochs": 1, "min_steps": 1})
    good = TwinMergingRouter.fit(config, clustered(3, 5, dim=8), no_progress)
    TwinMergingRouter.load(config, good)
    assert name in good.arrays
    arrays = {key: kept for key, kept in good.arrays.items() if key != name}
    with pytest.raises(BadArtefact):
        TwinMergingRouter.load(config, replace(good, arrays=arrays | ({} if array is None else {name: array})))
