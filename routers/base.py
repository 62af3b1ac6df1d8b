"""The router seam: what a router is asked, what it answers, and how it is fitted.

A routing method is one class in one file of this package::

    class MyRouter:
        card: ClassVar[MethodCard] = MethodCard(...)
        config_class: ClassVar[type[RouterConfig]] = MyConfig

        @classmethod
        def fit(cls, config, data, progress) -> Artefact: ...

        @classmethod
        def load(cls, config, artefact) -> "MyRouter": ...

        def route(self, query) -> Decision: ...

`fit` may take minutes and runs in a worker thread. `route` is on the hot path: synchronous, pure, no I/O, thread-safe
(it must not write to ``self``). Everything a router keeps lies in its `Artefact`, so that a policy can be stored,
verified, and swapped atomically. This module holds no algorithm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

Vector = NDArray[np.float32]
"""Shape (dim,), float32, unit length."""

Matrix = NDArray[np.float32]
"""Shape (num_rows, dim), float32, rows of unit length unless said otherwise."""

Floats = NDArray[np.float64]
"""Any shape, float64."""

MAX_EXPERTS = 64
"""Experts that one decision can use: as many as a recipe can hold."""

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


def no_progress(_done: int, _total: int) -> None:
    """Report nothing; the default of every fitter."""


BASE = "base"
"""The base among the models of a table, where experts go by their ids."""


def name_of(expert_id: str) -> str:
    """An expert's name, without its version."""
    return expert_id.rpartition("@")[0] or expert_id


# -- what a router is asked ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TaskWindow:
    """The last prompts that a caller sent under one ``task_id``, the present one last.

    Attributes:
        texts: Their views, shape (t,).
        embeddings: Shape (t, dim).
    """

    texts: tuple[str, ...]
    embeddings: Matrix


@dataclass(frozen=True, slots=True)
class RouteQuery:
    """One request as a router sees it.

    Attributes:
        text: The view of the prompt: system text and the last user turns, as one string.
        embedding: The view's embedding, or None for methods whose card says ``needs_embedding=False``.
        candidates: Ids (``name@sha8``) of the experts that this caller may use; None means all of them. A router
            must never return, score or quote an expert outside this set.
        task_id: The request's own ``task_id``: what the caller says that this prompt belongs to.
        parts: For methods whose card says ``reads_parts``: embeddings of the prompt's `routers.text.segments.parts_of`,
            shape (4, dim).
        window: For methods whose card says ``reads_task``: the task's last prompts; None without a ``task_id``.
        preference: The request's own ``preference``: how much each expert, by name, is wanted; weights are positive.
        threshold: What the caller wrote behind the policy's name (``policy:0.3``).
        answer: For methods whose card says ``asks_base``: what the base answered to `question`.
    """

    text: str
    embedding: Vector | None = None
    candidates: frozenset[str] | None = None
    task_id: str | None = None
    window: TaskWindow | None = None
    preference: Mapping[str, float] | None = None
    threshold: float | None = None
    answer: str | None = None
    parts: Matrix | None = None

    def allows(self, expert_id: str) -> bool:
        """Whether the caller may use this expert."""
        return self.candidates is None or expert_id in self.candidates


# -- what a router answers ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WeightedExpert:
    """An expert that the decision uses, with its share. Weights of a decision need not sum to one."""

    expert_id: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class GateChoice:
    """The decision's experts are weighted per token and layer inside the model, by a gate of the recipe language.

    Attributes:
        kind: Name of the gate, for example ``arrow``; ``fixed`` takes the decision's own weights, which only the
            aggregation ``ab`` makes another thing than a mix.
        k: Experts that a token may use in a layer; None for the gate's default.
        temperature: Of the softmax over their scores.
        aggregation: Of the experts' outputs, or of their A and their B each (``ab``).
    """

    kind: str
    k: int | None = None
    temperature: float = 1.0
    aggregation: Literal["output", "ab"] = "output"


@dataclass(frozen=True, slots=True)
class ScoredExpert:
    """A candidate as the router saw it; the scale of `score` is the router's own, larger is better."""

    expert_id: str
    score: float


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An example prompt that spoke for an expert; `similarity` is a cosine."""

    expert_id: str
    example: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Decision:
    """A router's answer.

    Attributes:
        experts: What to execute: empty to abstain (the base answers), one for a single expert, more for a mix or gate.
        confidence: In [0, 1]: the router's own estimate that its first choice is right.
        candidates: Every candidate it scored, best first (bounded by the router's config).
        neighbours: The nearest examples, best first, where the method has any.
        reason: One sentence for people.
        gate: How several experts are weighted, if not by their own weights in a mix.
    """

    experts: tuple[WeightedExpert, ...]
    confidence: float
    candidates: tuple[ScoredExpert, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    reason: str = ""
    gate: GateChoice | None = None

    @property
    def abstained(self) -> bool:
        """Whether no expert was chosen, so that the base answers."""
        return not self.experts


# -- what a router learns from ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LibraryExpert:
    """An expert as routers see it: its id, its card's text, its example prompts."""

    expert_id: str
    description: str = ""
    tags: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The expert's name without its version."""
        return name_of(self.expert_id)


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt with the answer that is wanted, for methods that adapt to a task or learn from scores.

    Attributes:
        task: Which task it belongs to; in-library tasks bear the name of their expert.
        metric: Name of the metric that compares an answer with `answer` (`routers.evaluation.answer_metrics`).
    """

    prompt: str
    answer: str
    task: str = ""
    metric: str = "exact_match"


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """How well the base and every expert answered labelled prompts: n prompts, M models.

    Attributes:
        models: ``base`` first, then ids of experts, shape (M,).
        samples: The prompts, shape (n,).
        embeddings: Of the prompts, shape (n, dim).
        scores: The metric's value in [0, 1], larger is better, shape (n, M); NaN where it is not known.
        losses: Mean cross-entropy of the wanted answer, nats a token, shape (n, M); NaN where it is not known.
        prompt_losses: The same of the prompt itself, shape (n, M).
        entropies: Mean entropy of the next-token distribution over the prompt, nats, shape (n, M), a lower bound from
            the most likely tokens; NaN where it is not known.
    """

    models: tuple[str, ...]
    samples: tuple[Sample, ...]
    embeddings: Matrix
    scores: NDArray[np.float64]
    losses: NDArray[np.float64]
    prompt_losses: NDArray[np.float64]
    entropies: NDArray[np.float64]


class Losses(Protocol):
    """The engine, as fitters see it that search for weights."""

    def __call__(
        self, weights: Mapping[str, float], samples: Sequence[Sample], formula: Literal["exact", "ab"] = "exact"
    ) -> NDArray[np.float64]:
        """Mean cross-entropy of each sample's answer, nats a token, shape (n,), under experts merged with `weights`.

        ``exact`` is the weighted sum of their updates, ``ab`` sums their A and their B each with the weights.
        Blocking; for worker threads. Weights may be negative.
        """
        ...


@dataclass(frozen=True, slots=True)
class FitData:
    """The library at one moment, with its examples embedded once for all routers.

    Attributes:
        experts: All active experts, sorted by id.
        embeddings: For each expert id, shape (num_examples, dim), rows in the order of ``examples``.
        embedder: Name of the embedder, part of every artefact's provenance.
        version: Content hash of experts, examples and embedder: equal versions are equal data.
        bare: As `embeddings`, of the examples without their template (`routers.text.templates`); an expert that is
            missing counts as having none to leave out.
        scores: The table that ``moergate score`` filled, if there is one.
        samples: Labelled prompts that were given for this policy (``moergate fit --data``).
        losses: The engine, for methods that search for weights; None where there is none.
        embed: The embedder, for methods that embed texts of their own; blocking, for worker threads.
        previous: The policy's router in service when it only follows its library: what a small change cannot have
            moved may be taken from it. It was fitted with the same embedder. None if somebody asked for a fit.
    """

    experts: tuple[LibraryExpert, ...]
    embeddings: Mapping[str, Matrix]
    embedder: str
    version: str
    bare: Mapping[str, Matrix] = field(default_factory=dict)
    scores: ScoreTable | None = None
    samples: tuple[Sample, ...] = ()
    losses: Losses | None = None
    embed: Callable[[Sequence[str]], Matrix] | None = None
    previous: Router | None = None


@dataclass(frozen=True, slots=True)
class Artefact:
    """What a router has fitted: arrays and plain JSON data, nothing executable.

    `arrays` hold numbers only (any shape and dtype that safetensors can store), `data` JSON values only.
    """

    router: str
    arrays: Mapping[str, NDArray[Any]]
    data: Mapping[str, Any]
    library_version: str
    embedder: str


# -- the method's card and the seam itself ------------------------------------------------------------------------


Need = Literal["examples", "descriptions", "scores", "losses", "samples", "engine"]
"""What a method cannot be fitted without."""


Standing = Literal["recommended", "comparison", "baseline"]
"""Whether a method is recommended, kept for comparison, or a baseline that others must beat."""


class RouterConfig(BaseModel):
    """Base of every router's options: unknown keys are refused, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class MethodCard:
    """What a method is, in the nine design choices of the survey of model MoErging (Yadav et al., 2024), and its needs.

    Attributes:
        needs: What `fit` requires (`routers.fitting.SUPPLIED_BY` names the command that makes each).
        needs_embedding: Whether `route` reads ``query.embedding``.
        embedder: ``base`` for methods on the base model's own hidden states; empty for the gateway's embedder.
        reads_task: Whether `route` reads ``query.window``.
        reads_parts: Whether `route` reads ``query.parts``.
        asks_base: Whether `route` wants the base's answer to `question` first (`AsksBase`).
        may_read_scores: Whether `fit` uses the table of scores under some option, without needing it under all.
        refit: ``cheap`` methods are refitted whenever the library changes; others are marked stale.
        cost: Cost per request, in words.
    """

    name: str
    title: str
    paper: str
    expert_training: str
    expert_data: str
    routing_dataset: str
    input_granularity: Literal["task", "example", "step"]
    depth: Literal["model", "module"]
    selection: Literal["top-1", "top-k", "dense"]
    aggregation: Literal["none", "parameters", "outputs", "logits"]
    generalization: str
    user_dataset: str
    needs: tuple[Need, ...] = ()
    needs_embedding: bool = True
    embedder: Literal["", "base"] = ""
    reads_task: bool = False
    reads_parts: bool = False
    asks_base: bool = False
    may_read_scores: bool = False
    refit: Literal["cheap", "costly"] = "cheap"
    cost: str = ""
    differences: Sequence[str] = field(default_factory=tuple)
    standing: Standing = "comparison"

    @property
    def reads_scores(self) -> bool:
        """Whether `fit` may use the table of scores."""
        return self.may_read_scores or bool({"scores", "losses"} & set(self.needs))


@runtime_checkable
class Router(Protocol):
    """A routing method; see the module's docstring for the contract and tests/contract for what is checked."""

    card: ClassVar[MethodCard]
    config_class: ClassVar[type[RouterConfig]]

    @classmethod
    def fit(cls, config: Any, data: FitData, progress: Progress) -> Artefact:
        """Learn from the library; raises `NotFittable` with the command that supplies what is missing."""
        ...

    @classmethod
    def load(cls, config: Any, artefact: Artefact) -> Router:
        """Build a router that is ready to route from what `fit` returned."""
        ...

    def route(self, query: RouteQuery) -> Decision:
        """Decide; synchronous, pure, thread-safe."""
        ...


@dataclass(frozen=True, slots=True)
class Question:
    """What the base is asked before a decision; its answer is one of the choices.

    Attributes:
        prompt: The user message.
        choices: What it may answer (constrained decoding), at least one.
    """

    prompt: str
    choices: tuple[str, ...]


@runtime_checkable
class AsksBase(Protocol):
    """What a router has besides, if its card says ``asks_base``."""

    def question(self, query: RouteQuery) -> Question | None:
        """What to ask, or None if `route` needs no answer; synchronous, pure, thread-safe."""
        ...
