"""AdapterSoup over a task's prompts, by cosine and by a mixture of Gaussians, which is compared with scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from routers.base import Decision, FitData, GateChoice, RouteQuery, TaskWindow, no_progress
from routers.errors import BadArtefact
from routers.maths.gaussian_mixture import RIDGE, Mixture, fit_mixture
from routers.methods.adapter_soup import AdapterSoupConfig, AdapterSoupRouter
from tests.unit.routers.builders import around, centres, clustered, expert_id, ids, library_of, unit


def fitted(data: FitData, **options: object) -> AdapterSoupRouter:
    config = AdapterSoupConfig.model_validate(options)
    return AdapterSoupRouter.load(config, AdapterSoupRouter.fit(config, data, no_progress))


def asking(rows: np.ndarray, candidates: frozenset[str] | None = None) -> RouteQuery:
    return RouteQuery("", rows[-1], candidates, "task", TaskWindow(("",) * len(rows), rows))


def chosen(decision: Decision) -> dict[str, float]:
    return {expert.expert_id: expert.weight for expert in decision.experts}


# -- the mixture --------------------------------------------------------------------------------------------------


def sign_free(rows: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Columns turned so that they point as those of another matrix."""
    return rows * np.sign((rows * like).sum(axis=0))


@pytest.mark.parametrize(("num_rows", "num_clusters", "num_axes"), [(60, 3, 5), (200, 12, 32), (40, 40, 2), (9, 4, 32)])
def test_a_mixture_predicts_as_scikit_learns_over_principal_components(
    num_rows: int, num_clusters: int, num_axes: int
) -> None:
    rng = np.random.default_rng(num_rows)
    rows = unit(rng.normal(size=(num_rows, 24)) + 2 * rng.normal(size=(6, 24))[rng.integers(0, 6, num_rows)])
    asked = unit(rows[rng.integers(0, num_rows, 500)] + 0.1 * rng.normal(size=(500, 24)))
    arrays = fit_mixture(rows, num_clusters, num_axes)
    num_axes = min(num_axes, num_rows - 1, 24)
    pca = PCA(num_axes, svd_solver="full").fit(rows.astype(np.float64))
    ours = (rows.astype(np.float64) - arrays["origin"]) @ arrays["axes"]
    theirs = pca.transform(rows.astype(np.float64))[:, ::-1]
    np.testing.assert_allclose(sign_free(theirs, ours), ours, atol=1e-6)
    model = GaussianMixture(num_clusters, covariance_type="diag", reg_covar=RIDGE, max_iter=500, random_state=0)
    model.fit(ours)
    np.testing.assert_array_equal(Mixture(arrays).clusters(rows), model.predict(ours))
    projected = (asked.astype(np.float64) - arrays["origin"]) @ arrays["axes"]
    np.testing.assert_array_equal(Mixture(arrays).clusters(asked), model.predict(projected))
    assert len(set(model.predict(projected).tolist())) > 1


@pytest.mark.parametrize("num_distinct", [1, 2, 3])
def test_a_mixture_has_no_more_clusters_than_distinct_rows(num_distinct: int) -> None:
    rows = np.repeat(np.eye(3, 8, dtype=np.float32)[:num_distinct], 5, axis=0)
    arrays = fit_mixture(rows, 9, 4)
    assert len(arrays["weights"]) == num_distinct
    assert len(set(Mixture(arrays).clusters(rows).tolist())) == num_distinct


def test_arrays_that_do_not_fit_are_no_mixture() -> None:
    arrays = fit_mixture(np.eye(6, dtype=np.float32), 2, 3)
    for name, array in arrays.items():
        with pytest.raises(ValueError, match=r"mixture|unpack"):
            Mixture({**arrays, name: array[:-1]})
        with pytest.raises(KeyError):
            Mixture({other: kept for other, kept in arrays.items() if other != name})


# -- by cosine ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_score_is_the_mean_pairwise_cosine_of_the_tasks_prompts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = {
        expert_id(i): unit(rng.normal(size=(int(rng.integers(1, 100)), 12)) + rng.normal(size=12)) for i in range(7)
    }
    prompts = unit(rng.normal(size=(9, 12)))
    decision = fitted(library_of(blocks)).route(asking(prompts))
    expected = {
        name: np.mean([[x @ q for x in rows] for q in prompts.astype(np.float64)]) for name, rows in blocks.items()
    }
    assert {s.expert_id: s.score for s in decision.candidates} == pytest.approx(expected, abs=1e-6)


def test_the_window_decides_and_not_the_last_prompt() -> None:
    data, directions = clustered(3), centres(3)
    router = fitted(data, top_k=1)
    rows = np.concatenate([around(directions[1], 5, 0.2), directions[:1]])
    assert ids(router.route(asking(rows)).experts) == [expert_id(1)]
    assert ids(router.route(RouteQuery("", rows[-1])).experts) == [expert_id(0)]


def test_blank_prompts_of_a_window_do_not_count() -> None:
    data, directions = clustered(3), centres(3)
    blank = np.full((2, 32), np.nan, np.float32)
    for way in ("cosine", "gmm"):
        router = fitted(data, selection_by=way)
        assert router.route(asking(np.concatenate([directions[:1], blank]))) == router.route(asking(directions[:1]))
        assert router.route(asking(blank)).abstained


# -- by a mixture -------------------------------------------------------------------------------------------------


def overlapping(seed: int, sizes: tuple[int, ...] = (30, 50, 20, 90, 40)) -> FitData:
    """Experts whose examples come from two of three directions each."""
    directions, rng = centres(3, 16, 1), np.random.default_rng(seed)
    blocks = {}
    for number, size in enumerate(sizes):
        picked = directions[[number % 3, (number + 1) % 3]][(rng.random(size) < 0.3).astype(int)]
        blocks[expert_id(number)] = unit(picked + 0.15 * rng.normal(size=(size, 16)))
    return library_of(blocks)


@pytest.mark.parametrize("seed", range(3))
def test_the_score_is_whose_the_clusters_are_that_are_hit(seed: int) -> None:
    data = overlapping(seed)
    router = fitted(data, selection_by="gmm", num_axes=8, threshold=-1.0)
    prompts = unit(centres(3, 16, 1)[[0, 0, 1]] + 0.1 * np.random.default_rng(seed).normal(size=(3, 16)))
    arrays = AdapterSoupRouter.fit(AdapterSoupConfig(selection_by="gmm", num_axes=8), data, no_progress).arrays
    mixture = Mixture(arrays)
    assert len(arrays["weights"]) == 5
    expected = dict.fromkeys(data.embeddings, 0.0)
    for hit in mixture.clusters(prompts).tolist():
        parts = {name: float(np.mean(mixture.clusters(rows) == hit)) for name, rows in data.embeddings.items()}
        for name, part in parts.items():
            expected[name] += part / sum(parts.values()) / len(prompts)
    decision = router.route(asking(prompts))
    assert {s.expert_id: s.score for s in decision.candidates} == pytest.approx(expected, abs=1e-6)
    best = [s.expert_id for s in decision.candidates if s.score > 0][:5]
    assert chosen(decision) == pytest.approx(dict.fromkeys(best, 1 / len(best)))
    assert decision.gate == GateChoice("uniform", aggregation="ab")


def test_separate_experts_are_found_and_others_left_out_of_the_soup() -> None:
    data, directions = clustered(6, 30, 0.3), centres(6)
    router = fitted(data, selection_by="gmm")
    for number in range(6):
        decision = router.route(RouteQuery("", around(directions[number], 1, 0.3, 77)[0]))
        assert chosen(decision) == {expert_id(number): 1.0}
    both = np.concatenate([around(directions[1], 3, 0.2), around(directions[4], 2, 0.2)])
    assert chosen(router.route(asking(both))) == {expert_id(1): 0.5, expert_id(4): 0.5}


def test_candidates_bound_the_soup() -> None:
    data = overlapping(0)
    allowed = frozenset({expert_id(1), expert_id(3)})
    decision = fitted(data, selection_by="gmm", threshold=-1.0).route(asking(centres(3, 16, 1), allowed))
    assert set(ids(decision.candidates)) == allowed
    assert set(chosen(decision)) <= allowed


def test_few_examples_and_none() -> None:
    rows = np.eye(2, 16, dtype=np.float32)
    data = library_of({expert_id(0): rows[:1], expert_id(1): rows[1:], expert_id(2): np.zeros((0, 16), np.float32)})
    for seen in (data, library_of({expert_id(0): rows[:1]})):
        decision = fitted(seen, selection_by="gmm", threshold=0.5).route(RouteQuery("", rows[0]))
        assert chosen(decision) == {expert_id(0): 1.0}
        assert expert_id(2) not in ids(decision.candidates)
    assert fitted(library_of({}), selection_by="gmm").route(RouteQuery("", rows[0])).abstained


def test_at_most_a_hundred_examples_of_an_expert_make_the_mixture() -> None:
    rng = np.random.default_rng(0)
    rows = unit(rng.normal(size=(400, 8)))
    kept = rows[np.linspace(0, 399, 100).astype(int)]
    config = AdapterSoupConfig(selection_by="gmm", num_clusters=3)
    many, few = (
        AdapterSoupRouter.fit(config, library_of({expert_id(0): block}), no_progress).arrays for block in (rows, kept)
    )
    for name in few:
        np.testing.assert_array_equal(many[name], few[name])


def test_an_artefact_of_one_way_is_not_the_others() -> None:
    data = clustered(3)
    ways = [AdapterSoupConfig(selection_by=way) for way in ("cosine", "gmm")]
    artefacts = [AdapterSoupRouter.fit(way, data, no_progress) for way in ways]
    with pytest.raises(BadArtefact):
        AdapterSoupRouter.load(ways[0], artefacts[1])
    with pytest.raises(BadArtefact):
        AdapterSoupRouter.load(ways[1], artefacts[0])
    garbled = replace(artefacts[1], arrays={**artefacts[1].arrays, "shares": np.zeros((3, 2))})
    with pytest.raises(BadArtefact):
        AdapterSoupRouter.load(ways[1], garbled)
