"""Votes of a task's prompts against scikit-learn's nearest neighbours."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from routers.base import Artefact, FitData, RouteQuery, TaskWindow, no_progress
from routers.errors import BadArtefact
from routers.methods.retrieval_of_experts import RetrievalOfExpertsConfig, RetrievalOfExpertsRouter
from tests.unit.routers.builders import expert_id, ids, library_of, unit


def fitted(data: FitData, **options: object) -> RetrievalOfExpertsRouter:
    config = RetrievalOfExpertsConfig.model_validate(options)
    return RetrievalOfExpertsRouter.load(config, RetrievalOfExpertsRouter.fit(config, data, no_progress))


def asking(rows: np.ndarray, candidates: frozenset[str] | None = None, **more: object) -> RouteQuery:
    window = TaskWindow(tuple(f"prompt {row}" for row in range(len(rows))), rows)
    return RouteQuery("", rows[-1], candidates, "task", window, **more)  # type: ignore[arg-type]


def toy(**options: object) -> RetrievalOfExpertsRouter:
    """Experts 0, 1 and 2 with one example each, along the first three axes."""
    return fitted(library_of({expert_id(i): np.eye(4, dtype=np.float32)[i : i + 1] for i in range(3)}), **options)


def near(axis: int, cosine: float) -> np.ndarray:
    """A unit vector of this cosine with one axis and none with the other two experts'."""
    row = np.zeros(4, np.float32)
    row[axis], row[3] = cosine, np.sqrt(1 - cosine**2)
    return row


@pytest.mark.parametrize("seed", range(6))
def test_each_prompt_votes_for_its_nearest_allowed_example(seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = {expert_id(i): unit(rng.normal(size=(int(rng.integers(1, 40)), 6))) for i in range(8)}
    allowed = frozenset(expert_id(int(i)) for i in rng.choice(8, 5, replace=False))
    prompts = unit(rng.normal(size=(25, 6)))
    names = sorted(allowed)
    rows = np.concatenate([blocks[name] for name in names]).astype(np.float64)
    owner = np.repeat(names, [len(blocks[name]) for name in names])
    distances, nearest = NearestNeighbors(n_neighbors=1).fit(rows).kneighbors(prompts.astype(np.float64))
    votes = Counter(owner[nearest[:, 0]].tolist())
    decision = fitted(library_of(blocks)).route(asking(prompts, allowed))
    assert {s.expert_id: s.score for s in decision.candidates} == pytest.approx({n: v / 25 for n, v in votes.items()})
    assert votes[decision.experts[0].expert_id] == max(votes.values())
    assert decision.confidence == max(votes.values()) / 25
    cosines = sorted((1 - distances[:, 0] ** 2 / 2).tolist(), reverse=True)
    assert decision.neighbours[0].similarity == pytest.approx(cosines[0], abs=1e-6)
    assert len({(n.expert_id, n.example) for n in decision.neighbours}) == len(decision.neighbours)


def test_without_a_window_the_prompt_votes_alone() -> None:
    decision = toy().route(RouteQuery("", near(1, 0.6)))
    assert ids(decision.experts) == [expert_id(1)]
    assert decision.confidence == 1


def test_the_last_prompts_vote() -> None:
    rows = np.stack([near(0, 0.9)] * 5 + [near(2, 0.4)] * 3)
    assert ids(toy().route(asking(rows)).experts) == [expert_id(0)]
    assert ids(toy(num_queries=4).route(asking(rows)).experts) == [expert_id(2)]


def test_ties_go_to_the_nearer_examples_then_by_name() -> None:
    rows = np.stack([near(0, 0.5), near(1, 0.9), near(0, 0.6), near(1, 0.4)])
    assert ids(toy().route(asking(rows)).candidates) == [expert_id(1), expert_id(0)]
    rows = np.stack([near(2, 0.5), near(1, 0.5)])
    assert ids(toy().route(asking(rows)).candidates) == [expert_id(1), expert_id(2)]


def test_the_experts_with_most_votes_are_mixed() -> None:
    rows = np.stack([near(0, 0.5)] * 3 + [near(2, 0.9)])
    decision = toy(top_k=3).route(asking(rows))
    assert {e.expert_id: e.weight for e in decision.experts} == {expert_id(0): 0.5, expert_id(2): 0.5}
    assert decision.confidence == 0.75


def test_it_abstains_below_a_threshold_only_if_there_is_one() -> None:
    rows = np.stack([near(0, 0.3), near(0, 0.5), near(1, 0.9)])
    assert not toy().route(asking(-rows)).abstained
    assert toy(threshold=0.41).route(asking(rows)).abstained
    assert not toy(threshold=0.39).route(asking(rows)).abstained
    assert toy(threshold=0.39).route(asking(rows, threshold=0.41)).abstained
    assert not toy(threshold=0.41).route(asking(rows, threshold=0.0)).abstained


def test_prompts_without_an_embedding_do_not_vote() -> None:
    blank = np.full(4, np.nan, np.float32)
    decision = toy().route(asking(np.stack([near(0, 0.5), blank, blank])))
    assert (ids(decision.experts), decision.confidence) == ([expert_id(0)], 1)
    assert toy().route(asking(np.stack([blank, blank]))).abstained


def test_at_most_a_hundred_examples_of_each_expert_evenly() -> None:
    rows = np.zeros((300, 4), np.float32)
    rows[:, 0] = 1
    rows[1] = [0, 1, 0, 0]
    artefact = RetrievalOfExpertsRouter.fit(
        RetrievalOfExpertsConfig(), library_of({expert_id(0): rows, expert_id(1): rows[:7]}), no_progress
    )
    assert np.bincount(artefact.arrays["owner"]).tolist() == [100, 7]
    assert artefact.data["examples"][99] == f"example 299 of {expert_id(0)}"


def test_an_expert_without_examples_gets_no_vote() -> None:
    data = library_of({expert_id(0): np.eye(1, 4, dtype=np.float32), expert_id(1): np.zeros((0, 4), np.float32)})
    assert ids(fitted(data).route(asking(near(1, 0.9)[None])).candidates) == [expert_id(0)]
    assert fitted(data).route(asking(near(1, 0.9)[None], frozenset({expert_id(1)}))).abstained


@pytest.mark.parametrize("owner", [[0, 2], [-1, 0], [0]])
def test_a_garbled_artefact_is_refused(owner: list[int]) -> None:
    arrays = {"embeddings": np.eye(2, dtype=np.float32), "owner": np.array(owner, np.int32)}
    data = {"experts": ["a@00000000", "b@00000000"], "examples": ["x", "y"]}
    with pytest.raises(BadArtefact):
        RetrievalOfExpertsRouter.load(
            RetrievalOfExpertsConfig(), Artefact("retrieval_of_experts", arrays, data, "v", "e")
        )
