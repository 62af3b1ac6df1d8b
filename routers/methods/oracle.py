"""Router `oracle`: the expert that the caller's ``task_id`` names, the upper bound of any router.

    expert = the one whose id is task_id, else whose name it is, else one whose card lists it among its tasks

The router ignores the prompt. It is not a way to route traffic but the upper bound in comparisons, as in mttl,
PHATGOOSE and LoraRetriever, which take the task's own expert. If several experts list the task, the first by name is
chosen, with confidence 1/n. Without a ``task_id``, and for one that no expert serves, the base answers. A caller that
may not use an expert gets the same answer as if it did not exist. Cost: one look-up in a dictionary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Self

from routers.artefacts import reading
from routers.base import (
    Artefact,
    Decision,
    FitData,
    MethodCard,
    Progress,
    RouteQuery,
    RouterConfig,
    ScoredExpert,
    WeightedExpert,
    name_of,
)
from routers.families.cards import BASELINE_CARD


class OracleConfig(RouterConfig):
    """No options."""


class OracleRouter:
    """Routes to the expert that the caller's task names."""

    card: ClassVar[MethodCard] = replace(
        BASELINE_CARD,
        name="oracle",
        title="The expert that the caller names",
        paper="baseline: oracle routing, as in Ostapenko et al., 2024, and Muqeeth et al., 2024",
        expert_data="names of tasks",
        generalization="none: tasks of the library only",
        cost="a look into a dictionary",
    )
    config_class: ClassVar[type[RouterConfig]] = OracleConfig

    def __init__(self, tasks: Mapping[str, Sequence[str]]) -> None:
        """Take the tasks of each expert, by its id."""
        experts = sorted(tasks)
        self._served: dict[str, tuple[str, ...]] = {}
        for expert in experts:
            for task in tasks[expert]:
                self._served[task] = (*self._served.get(task, ()), expert)
        names: dict[str, tuple[str, ...]] = {}
        for expert in experts:
            name = name_of(expert)
            names[name] = (*names.get(name, ()), expert)
        self._named = names | {expert: (expert,) for expert in experts}

    @classmethod
    def fit(cls, config: OracleConfig, data: FitData, progress: Progress) -> Artefact:
        """Record which expert serves which task."""
        tasks = {expert.expert_id: sorted(set(expert.tasks)) for expert in data.experts}
        return Artefact(cls.card.name, {}, {"tasks": tasks}, data.version, data.embedder)

    @classmethod
    def load(cls, config: OracleConfig, artefact: Artefact) -> Self:
        """Build the router from an artefact of `fit`; raises `BadArtefact`."""
        with reading(artefact, cls.card.name):
            tasks = artefact.data["tasks"]
            if not isinstance(tasks, Mapping) or not all(isinstance(listed, list) for listed in tasks.values()):
                raise TypeError("'tasks' does not list the tasks of each expert")
        return cls({str(expert): [str(task) for task in listed] for expert, listed in tasks.items()})

    def route(self, query: RouteQuery) -> Decision:
        """Look up the task."""
        if not query.task_id:
            return Decision((), 0.0, reason="The request names no task.")
        for known in (self._named, self._served):
            found = [expert for expert in known.get(query.task_id, ()) if query.allows(expert)]
            if found:
                share = 1 / len(found)
                return Decision(
                    (WeightedExpert(found[0]),),
                    share,
                    tuple(ScoredExpert(expert, share) for expert in found),
                    reason=f"The caller's task belongs to {found[0]}.",
                )
        return Decision((), 0.0, reason="No allowed expert serves the caller's task.")
