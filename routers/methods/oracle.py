"""Router `oracle`: the expert that the caller's ``task_id`` names; what a router would reach that is never wrong.

    expert = the one whose id is task_id, else whose name it is, else one whose card lists it among its tasks

It looks at nothing else, so it is no way to route traffic but the upper bound in comparisons, as in mttl, PHATGOOSE and
LoraRetriever, where the task's own expert is taken. Of several experts that list the task the first by name is chosen,
with confidence 1/n. Without a ``task_id``, and for one that no expert serves, the base answers; a caller who may not
use an expert is told the same as if there were none. Cost: one look into a dictionary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

from routers.artefacts import check_router
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
from routers.errors import BadArtefact


class OracleConfig(RouterConfig):
    """No options."""


class OracleRouter:
    """The expert of the caller's task; see the module's docstring."""

    card: ClassVar[MethodCard] = MethodCard(
        name="oracle",
        title="The expert that the caller names",
        paper="baseline: oracle routing, as in Ostapenko et al., 2024, and Muqeeth et al., 2024",
        expert_training="any",
        expert_data="names of tasks",
        routing_dataset="none",
        input_granularity="task",
        depth="model",
        selection="top-1",
        aggregation="none",
        generalization="none: tasks of the library only",
        user_dataset="none",
        needs_embedding=False,
        cost="a look into a dictionary",
    )
    config_class: ClassVar[type[RouterConfig]] = OracleConfig

    def __init__(self, tasks: Mapping[str, Sequence[str]]) -> None:
        """From the tasks of each expert's id."""
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
        """Note who serves which task."""
        tasks = {expert.expert_id: sorted(set(expert.tasks)) for expert in data.experts}
        return Artefact(cls.card.name, {}, {"tasks": tasks}, data.version, data.embedder)

    @classmethod
    def load(cls, config: OracleConfig, artefact: Artefact) -> Self:
        """From `fit`; raises `BadArtefact`."""
        check_router(artefact, cls.card.name)
        tasks = artefact.data.get("tasks")
        if not isinstance(tasks, Mapping) or not all(isinstance(listed, list) for listed in tasks.values()):
            raise BadArtefact("an oracle artefact lacks or garbles 'tasks'")
        return cls({str(expert): [str(task) for task in listed] for expert, listed in tasks.items()})

    def route(self, query: RouteQuery) -> Decision:
        """Look the task up."""
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
                    reason=f"The caller's task is {found[0]}'s.",
                )
        return Decision((), 0.0, reason="No expert that may be used is of the caller's task.")
