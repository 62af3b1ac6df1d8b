"""Base of methods that find one mix of experts for a task: the samples, the search, the constant decision.

    w* = argmin_w  mean over samples of L(sample; w) + R(w)

L is the cross-entropy of the wanted answer under the experts merged with w, which the engine computes (`Losses`). A
method defines the bounds and the start of the search (`StaticMixRouter.find`). A decision is a look-up: every prompt of
a task gets the same weights. If the caller may not use some of the experts, the others keep their weights. Confidence
is the first expert's share of the allowed experts' weights; it says nothing about the prompt.

The search is nevergrad's NGOpt, which needs no gradients: each step costs one evaluation of all samples.
"""

from __future__ import annotations

import importlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from routers.artefacts import reading
from routers.base import (
    MAX_EXPERTS,
    Artefact,
    Decision,
    FitData,
    Losses,
    MethodCard,
    Progress,
    RouteQuery,
    RouterConfig,
    Sample,
    ScoredExpert,
    WeightedExpert,
)
from routers.errors import NotFittable
from routers.families.selection import WEIGHTED_FUSION
from routers.maths.even_sample import evenly_spaced

Weights = NDArray[np.float64]
"""Shape (k,), one weight for each expert that takes part."""

NEGLIGIBLE = 0.005
"""Weights below this would round to zero in a recipe, which keeps two decimals."""

_WORST_LOSS = 1e6
"""Replaces a loss that is not finite, because the search needs numbers."""

_MAX_PER_WEIGHT = 50

_NOISY = r"(nevergrad|scipy|sklearn|cma|bayes_opt)\b"
"""Modules whose warnings about the search do not help a user who fits a policy."""


class StaticMixConfig(RouterConfig):
    """Options of every static mix."""

    formula: Literal["exact", "ab"] = Field(
        "exact",
        description="How experts are merged: the weighted sum of their updates (exact), or of their A and their B "
        "matrices separately (ab).",
    )
    num_experts: int = Field(
        20, ge=1, le=MAX_EXPERTS, description="Experts that take part; a larger library is sampled at random."
    )
    max_samples: int = Field(5, ge=1, description="Number of samples of a task that count at most, evenly spaced.")
    budget: int = Field(
        40,
        ge=1,
        description="Number of weight vectors that are tried for a task, on all its samples; at most 50 an expert.",
    )
    seed: int = Field(0, ge=0, description="Seed of the random experts and of the search.")


class MeanLoss:
    """The mean loss of samples as a function of the weights, which counts its calls.

    Attributes:
        lowest: The lowest loss so far.
        num_calls: Number of calls so far.
    """

    def __init__(
        self,
        losses: Losses,
        experts: Sequence[str],
        samples: Sequence[Sample],
        formula: Literal["exact", "ab"],
        report: Callable[[int], None],
    ) -> None:
        self._losses, self._experts, self._samples = losses, tuple(experts), tuple(samples)
        self._formula, self._report = formula, report
        self.lowest, self.num_calls = _WORST_LOSS, 0

    def __call__(self, weights: Weights) -> float:
        """Return nats per token; a large number if the loss is not finite."""
        by_expert = dict(zip(self._experts, np.asarray(weights, np.float64).tolist(), strict=True))
        mean = float(np.mean(self._losses(by_expert, self._samples, self._formula)))
        loss = min(mean, _WORST_LOSS) if np.isfinite(mean) else _WORST_LOSS
        self.lowest = min(self.lowest, loss)
        self.num_calls += 1
        self._report(self.num_calls)
        return loss


class StaticMixRouter(ABC):
    """A router that gives all prompts of a task the same mix."""

    card: ClassVar[MethodCard]
    config_class: ClassVar[type[StaticMixConfig]]
    by_task: ClassVar[bool] = False
    """Whether each task of the samples gets separate weights, in addition to those over all samples."""

    def __init__(
        self,
        formula: Literal["exact", "ab"],
        overall: Mapping[str, float],
        tasks: Mapping[str, Mapping[str, float]],
    ) -> None:
        self._gate = WEIGHTED_FUSION if formula == "ab" else None
        self._overall, self._tasks = _by_weight(overall), {task: _by_weight(mix) for task, mix in tasks.items()}

    @classmethod
    @abstractmethod
    def find(cls, config: Any, loss: MeanLoss, num_experts: int) -> Weights:
        """Find the weights for one task, with up to ``config.budget`` calls of `loss`."""

    @classmethod
    def fit(cls, config: Any, data: FitData, progress: Progress) -> Artefact:
        """Search the weights; raises `NotFittable` without an engine, samples, finite losses, or nevergrad."""
        if data.losses is None or not data.samples:
            raise NotFittable(f"Router {cls.card.name!r} needs prompts with answers, and an engine that scores them.")
        experts = drawn([expert.expert_id for expert in data.experts], config.num_experts, config.seed)
        groups = _groups(data.samples, config.max_samples, cls.by_task)
        total = len(groups) * config.budget
        found = {}
        for number, (task, samples) in enumerate(groups.items()):
            report = partial(_advance, progress, number * config.budget, total)
            loss = MeanLoss(data.losses, experts, samples, config.formula, report)
            weights = cls.find(config, loss, len(experts)) if experts else np.empty(0)
            if loss.num_calls and loss.lowest >= _WORST_LOSS:
                raise NotFittable("The engine has no finite loss for the samples; has one of them an empty answer?")
            found[task] = dict(zip(experts, weights.tolist(), strict=True))
        overall = found.pop("")
        progress(total, total)
        return Artefact(
            router=cls.card.name,
            arrays={},
            data={"formula": config.formula, "weights": overall, "tasks": found},
            library_version=data.version,
            embedder=data.embedder,
        )

    @classmethod
    def load(cls, config: Any, artefact: Artefact) -> Self:
        """Build the router from an artefact of `fit`; raises `BadArtefact`."""
        with reading(artefact, cls.card.name):
            formula = artefact.data["formula"]
            overall = _finite(artefact.data["weights"])
            tasks = {str(task): _finite(mix) for task, mix in artefact.data["tasks"].items()}
            if formula not in ("exact", "ab"):
                raise ValueError(f"formula is {formula!r}, neither 'exact' nor 'ab'")
        return cls(formula, overall, tasks)

    def route(self, query: RouteQuery) -> Decision:
        """Return the task's mix, reduced to the allowed experts."""
        own = self._tasks.get(query.task_id, ()) if query.task_id is not None else ()
        has_own_mix = any(query.allows(expert) for expert, _ in own)
        mix = own if has_own_mix else self._overall
        kept = [(expert, weight) for expert, weight in mix if query.allows(expert)]
        if not kept:
            return Decision((), 0.0, reason="No allowed expert has a weight in the mix.")
        return Decision(
            experts=tuple(WeightedExpert(expert, weight) for expert, weight in kept),
            confidence=abs(kept[0][1]) / sum(abs(weight) for _, weight in kept),
            candidates=tuple(ScoredExpert(expert, weight) for expert, weight in kept),
            reason=f"The mix found for {'this task' if has_own_mix else 'all samples'}, independent of the prompt.",
            gate=self._gate,
        )


def drawn(experts: Sequence[str], max_experts: int, seed: int) -> tuple[str, ...]:
    """Draw up to `max_experts` of the experts at random; the result is sorted."""
    ordered = sorted(experts)
    chosen = np.random.default_rng(seed).choice(len(ordered), min(max_experts, len(ordered)), replace=False)
    return tuple(ordered[number] for number in np.sort(chosen).tolist())


def search(
    objective: Callable[[Weights], float], num: int, bounds: tuple[float, float], budget: int, seed: int
) -> Weights:
    """Search with nevergrad's NGOpt from zero within bounds; returns its recommendation, shape (num,).

    Up to `budget` evaluations are made, at most 50 per weight: with more, NGOpt uses a method that cannot be seeded.
    """
    try:
        nevergrad = importlib.import_module("nevergrad")
    except ImportError as error:
        raise NotFittable(f"The search for weights needs nevergrad ({error}): pip install nevergrad") from error
    low, high = bounds
    space = nevergrad.p.Array(init=np.zeros(num), lower=low, upper=high)
    space.random_state = np.random.RandomState(seed)
    optimizer = nevergrad.optimizers.NGOpt(parametrization=space, budget=min(budget, _MAX_PER_WEIGHT * num))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=_NOISY)
        return np.asarray(optimizer.minimize(objective).value, np.float64)


def _advance(progress: Progress, start: int, total: int, num_calls: int) -> None:
    progress(min(start + num_calls, total), total)


def _groups(samples: Sequence[Sample], max_samples: int, by_task: bool) -> dict[str, tuple[Sample, ...]]:
    """Group the samples by task, with all under ``""``; a single task is all."""
    names = sorted({sample.task for sample in samples}) if by_task else []
    tasks = {name: _evenly([s for s in samples if s.task == name], max_samples) for name in names}
    if len(tasks) < 2:
        return {"": _evenly(samples, max_samples)}
    together = tuple(sample for own in tasks.values() for sample in own)
    return {**{name: own for name, own in tasks.items() if name}, "": together}


def _evenly(samples: Sequence[Sample], max_samples: int) -> tuple[Sample, ...]:
    return tuple(samples[row] for row in evenly_spaced(len(samples), max_samples).tolist())


def _by_weight(mix: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """Sort by weight, largest first, without negligible weights."""
    kept = [(expert, weight) for expert, weight in mix.items() if abs(weight) >= NEGLIGIBLE]
    return tuple(sorted(kept, key=lambda pair: (-pair[1], pair[0])))


def _finite(mix: Mapping[str, Any]) -> dict[str, float]:
    weights = {str(expert): float(weight) for expert, weight in mix.items()}
    if not np.isfinite(list(weights.values())).all():
        raise ValueError("weights that are not finite")
    return weights
