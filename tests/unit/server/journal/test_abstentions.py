"""Groups of abstentions: they are found, described, and bounded."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from adapters_registry.decisions import DecisionRecord
from routers.base import Matrix
from server.journal.abstentions import MAX_GROUPS, MAX_SHOWN, group_abstentions, most_common_embedder
from tests.support.decisions import decision
from tests.unit.routers.builders import around, centres, clustered, fitted_knn


def rows(*blocks: Matrix, text: bool = False) -> list[DecisionRecord]:
    found = []
    for number, block in enumerate(blocks):
        for place, row in enumerate(block):
            found.append(
                decision(
                    f"{number}-{place}",
                    abstained=True,
                    embedder="made-up",
                    embedding=np.asarray(row, np.float16).tobytes(),
                    text=f"text {number}" if text else None,
                )
            )
    return found


@pytest.mark.parametrize("num_groups", [2, 3, 7])
def test_groups_are_found_by_themselves(num_groups: int) -> None:
    middles = centres(num_groups)
    blocks = [around(middles[number], 10 + 5 * number, 0.4, number) for number in range(num_groups)]
    groups = group_abstentions(rows(*blocks, text=True), None, None)
    assert [group.size for group in groups] == [10 + 5 * number for number in reversed(range(num_groups))]
    for number, group in zip(reversed(range(num_groups)), groups, strict=True):
        assert set(group.texts) == {f"text {number}"}
        assert {request.partition("-")[0] for request in group.request_ids} == {str(number)}
        assert len(group.request_ids) == MAX_SHOWN
        middle = blocks[number].mean(axis=0)
        expected = float((blocks[number] @ (middle / np.linalg.norm(middle))).mean())
        assert group.cohesion == pytest.approx(expected, abs=2e-3)  # float16


def test_alike_prompts_are_one_group() -> None:
    (group,) = group_abstentions(rows(around(centres(1)[0], 60, 0.3)), None, None)
    assert (group.size, group.texts) == (60, ())
    (same,) = group_abstentions(rows(np.repeat(centres(1), 12, axis=0)), None, None)
    assert same.cohesion == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("num", [1, 2, 5])
def test_few_prompts_are_one_group(num: int) -> None:
    (group,) = group_abstentions(rows(centres(num)), None, None)
    assert group.size == num


def test_nothing_is_no_group() -> None:
    assert group_abstentions([], None, None) == []
    assert most_common_embedder([]) == []


def test_as_many_groups_as_asked_for() -> None:
    spread = rows(centres(30))
    assert len(group_abstentions(spread, 4, None)) == 4
    assert len(group_abstentions(spread, 50, None)) == 30
    assert len(group_abstentions(spread, None, None)) <= MAX_GROUPS


def test_the_nearest_expert_is_the_routers_first() -> None:
    data = clustered(4)
    policy: Any = SimpleNamespace(router=fitted_knn(data), embedder=SimpleNamespace(name="made-up"))
    blocks = list(data.embeddings.values())
    groups = group_abstentions(rows(blocks[2]), 1, policy)
    assert groups[0].nearest is not None
    assert groups[0].nearest.expert == data.experts[2].expert_id
    policy.embedder.name = "another"
    assert group_abstentions(rows(blocks[2]), 1, policy)[0].nearest is None


def test_embeddings_of_another_model_are_left_out() -> None:
    mixed = rows(centres(4))
    mixed += [replace(row, embedder="other") for row in rows(centres(3))]
    mixed += [replace(row, embedding=row.embedding and row.embedding[:8]) for row in rows(centres(3))]
    assert most_common_embedder(mixed) == mixed[:4]
