"""The oracle: who serves the task that a caller names."""

from __future__ import annotations

import numpy as np
import pytest

from routers.base import Artefact, FitData, LibraryExpert, RouteQuery, no_progress
from routers.errors import BadArtefact
from routers.fitting import fit_data
from routers.methods.oracle import OracleConfig, OracleRouter
from tests.unit.routers.builders import ids

EXPERTS = (
    LibraryExpert("sql@00000001", tasks=("geography", "shared")),
    LibraryExpert("geography@00000002", tasks=("maps",)),
    LibraryExpert("bank@00000003", tasks=("shared", "shared", "bank_cards")),
)


def router(experts: tuple[LibraryExpert, ...] = EXPERTS) -> OracleRouter:
    data: FitData = fit_data(experts, {}, "made-up")
    return OracleRouter.load(OracleConfig(), OracleRouter.fit(OracleConfig(), data, no_progress))


@pytest.mark.parametrize(
    ("task_id", "expected"),
    [
        ("sql", "sql@00000001"),
        ("sql@00000001", "sql@00000001"),
        ("maps", "geography@00000002"),
        ("bank_cards", "bank@00000003"),
        ("geography", "geography@00000002"),  # a name goes before a task of that name
    ],
)
def test_a_task_is_an_id_a_name_or_a_task_of_a_card(task_id: str, expected: str) -> None:
    decision = router().route(RouteQuery("anything", task_id=task_id))
    assert ids(decision.experts) == ids(decision.candidates) == [expected]
    assert decision.confidence == 1


def test_the_first_of_those_that_share_a_task_is_taken() -> None:
    decision = router().route(RouteQuery("", task_id="shared"))
    assert ids(decision.experts) == ["bank@00000003"]
    assert ids(decision.candidates) == ["bank@00000003", "sql@00000001"]
    assert decision.confidence == 0.5


@pytest.mark.parametrize("task_id", [None, "", "weather", "sql@00000009", "SQL"])
def test_abstains_without_a_known_task(task_id: str | None) -> None:
    decision = router().route(RouteQuery("sql", np.ones(3, np.float32), task_id=task_id))
    assert decision.abstained
    assert decision.confidence == 0


def test_a_hidden_expert_is_as_one_that_does_not_exist() -> None:
    allowed = frozenset({"sql@00000001"})
    hidden = router().route(RouteQuery("", candidates=allowed, task_id="bank_cards"))
    assert hidden == router().route(RouteQuery("", candidates=allowed, task_id="no such task"))
    assert ids(router().route(RouteQuery("", candidates=allowed, task_id="shared")).experts) == ["sql@00000001"]
    # a hidden name does not hide a task of that name
    assert ids(router().route(RouteQuery("", candidates=allowed, task_id="geography")).experts) == ["sql@00000001"]


@pytest.mark.parametrize("data", [{}, {"tasks": []}, {"tasks": {"a@00000000": "ab"}}])
def test_a_garbled_artefact_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(BadArtefact):
        OracleRouter.load(OracleConfig(), Artefact("oracle", {}, data, "v", "e"))
