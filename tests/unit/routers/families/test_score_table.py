"""What routers share that learn from the table of scores, by a router that returns the mean scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest

from routers.base import MethodCard, RouteQuery, no_progress
from routers.errors import BadArtefact, NotFittable
from routers.families.score_table import Scored, TableConfig, TableRouter, Values, scored_of, tags_of
from routers.families.scoring import Learned
from routers.methods.zooter import ZooterRouter
from tests.unit.routers.builders import expert_id, unit
from tests.unit.routers.tables import fitted, random_table, table_data

A, B, C = (expert_id(i) for i in range(3))


class MeanRouter(TableRouter):
    """Values are the first row of what was learned."""

    card: ClassVar[MethodCard] = ZooterRouter.card
    config_class: ClassVar[type[TableConfig]] = TableConfig

    @classmethod
    def learn(cls, config: Any, scored: Scored, progress: Any) -> Learned:
        return Learned({"row": scored.scores[0]})

    def prepare(self, learned: Learned) -> None:
        self.row = learned.arrays["row"]

    def values(self, query: RouteQuery, allowed: np.ndarray) -> Values:
        return Values(self.row, self.row * 2, "Value is")


def query(**more: Any) -> RouteQuery:
    return RouteQuery("", np.eye(1, 3, dtype=np.float32)[0], **more)


def with_scores(*rows: list[float]) -> TableRouter:
    router = fitted(MeanRouter, table_data(np.repeat(np.eye(1, 3), len(rows), axis=0), np.array(rows)))
    assert isinstance(router, TableRouter)
    return router


def test_the_best_expert_is_chosen_if_it_is_better_than_the_base() -> None:
    decision = with_scores([0.3, 0.2, 0.45, 0.1]).route(query())
    assert [chosen.expert_id for chosen in decision.experts] == [B]
    assert [(c.expert_id, c.score) for c in decision.candidates] == [(B, 0.45), (A, 0.2), (C, 0.1)]
    assert decision.confidence == 0.9
    assert with_scores([0.5, 0.2, 0.45, 0.1]).route(query()).abstained
    assert with_scores([0.3, 0.2, 0.9, 0.1]).route(query()).confidence == 1.0


def test_ties_go_to_the_base_then_to_the_better_mean_then_to_the_name() -> None:
    assert with_scores([0.5, 0.5, 0.5, 0.5], [0.0, 1.0, 1.0, 1.0]).route(query()).abstained
    tied = with_scores([0.1, 0.5, 0.5, 0.5], [0.0, 0.2, 0.7, 0.7]).route(query())
    assert [candidate.expert_id for candidate in tied.candidates] == [B, C, A]


def test_the_caller_s_candidates_restrict_the_experts_but_not_the_base() -> None:
    router = with_scores([0.3, 0.2, 0.45, 0.4])
    assert router.route(query(candidates=frozenset({A, C}))).experts[0].expert_id == C
    only_worse = router.route(query(candidates=frozenset({A})))
    assert only_worse.abstained
    assert [candidate.expert_id for candidate in only_worse.candidates] == [A]


def test_a_threshold_of_the_query_is_the_least_score() -> None:
    router = with_scores([0.3, 0.2, 0.45, 0.1])
    assert not router.route(query(threshold=0.45)).abstained
    assert router.route(query(threshold=0.46)).abstained
    assert with_scores([0.5, 0.2, 0.45, 0.1]).route(query(threshold=0.0)).abstained


def test_what_is_not_known_is_not_chosen() -> None:
    nan = np.nan
    router = with_scores([0.3, nan, 0.45, 0.1], [0.0, 1.0, 0.0, 0.0])
    assert [candidate.expert_id for candidate in router.route(query()).candidates] == [B, C]
    without_base = with_scores([nan, 0.1, 0.2, 0.0])
    assert without_base.route(query()).experts[0].expert_id == B


def test_the_table_is_brought_in_line_with_the_library() -> None:
    nan = np.nan
    embeddings = np.array([[1, 0, 0], [nan, 0, 0], [0, 1, 0], [0, 0, 1]])
    scores = np.array([[0.1, 0.2, 0.3, nan], [1, 1, 1, nan], [1, nan, nan, nan], [0.4, 0.6, np.inf, nan]])
    one = unit(np.eye(1, 3))
    data = table_data(
        embeddings,
        scores,
        tasks=["a", "b", "c", "d"],
        models=["gone@0", B, "base", A],
        experts={A: one, B: one, "new@1": one},
    )
    scored = scored_of(data)
    assert scored.experts == (B,)  # A has no score, "new" is not in the table
    assert scored.tasks == ("a", "d")  # "b" has no embedding, "c" was answered by nobody who is left
    np.testing.assert_array_equal(scored.scores, [[0.3, 0.2], [nan, 0.6]])
    np.testing.assert_array_equal(scored.embeddings, embeddings[[0, 3]])
    np.testing.assert_allclose(scored.means(), [0.3, 0.4])
    assert data.scores is not None
    np.testing.assert_array_equal(data.scores.scores, scores)


def test_without_a_table_nothing_is_fitted() -> None:
    data = replace(table_data(np.eye(2), np.zeros((2, 2))), scores=None)
    with pytest.raises(NotFittable):
        MeanRouter.fit(TableConfig(), data, no_progress)


def test_a_table_without_scores_abstains() -> None:
    data = table_data(np.eye(3), np.full((3, 2), np.nan))
    decision = fitted(MeanRouter, data).route(query())
    assert decision.abstained
    assert decision.confidence == 0


def test_prompts_without_a_task_are_clustered() -> None:
    rng = np.random.default_rng(0)
    corners = np.repeat(np.eye(4, 8), 10, axis=0) + 0.01 * rng.normal(size=(40, 8))
    tasks = ["known"] * 10 + [""] * 30
    tags = tags_of(scored_of(table_data(corners, np.ones((40, 2)), tasks)), num_clusters=3)
    groups = [set(tags[start : start + 10].tolist()) for start in range(0, 40, 10)]
    assert all(len(group) == 1 for group in groups)
    assert len(set.union(*groups)) == 4
    assert len(set(tags_of(scored_of(table_data(corners, np.ones((40, 2)), ["x", "y"] * 20))).tolist())) == 2


@pytest.mark.parametrize("damage", ["means", "experts", "learned", "row"])
def test_a_damaged_artefact_is_refused(damage: str) -> None:
    embeddings, scores = random_table(0, dim=3)
    artefact = ZooterRouter.fit(ZooterRouter.config_class(), table_data(embeddings, scores), no_progress)
    arrays, data = dict(artefact.arrays), dict(artefact.data)
    if damage == "means":
        arrays["means"] = arrays["means"][:-1]
    elif damage == "experts":
        data["experts"] = data["experts"][:-1]
    elif damage == "learned":
        del data["learned"]
    else:
        arrays["weights"] = arrays["weights"][:-1]
    with pytest.raises(BadArtefact):
        ZooterRouter.load(ZooterRouter.config_class(), replace(artefact, arrays=arrays, data=data))
