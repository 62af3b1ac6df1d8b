"""The router seam: queries, decisions, the data that routers are fitted to, and the router protocol.

A routing method is one class in one file of `routers.methods`, or of another distribution::

    class MyRouter:
        card: ClassVar[MethodCard] = MethodCard(...)
        config_class: ClassVar[type[RouterConfig]] = MyConfig

        @classmethod
        def fit(cls, config, data, progress) -> Artefact: ...

        @classmethod
        def load(cls, config, artefact) -> "MyRouter": ...

        def route(self, query) -> Decision: ...

`fit` may take minutes and runs in a worker thread. `route` is on the hot path: synchronous, pure, no I/O, thread-safe
(it must not write to ``self``). Everything that a router keeps is in its `Artefact`, so a policy can be stored,
verified and swapped atomically. This module contains no algorithm.
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
"""Called with (steps done, steps in all). An exception that it raises ends the fit."""


def no_progress(_done: int, _total: int) -> None:
    """Report nothing; the default of `routers.fitting.fit_policy`."""


BASE = "base"
"""Name of the base among the models of a table, where experts have their ids."""


def name_of(expert_id: str) -> str:
    """Return an expert's name, without its version."""
    return expert_id.rpartition("@")[0] or expert_id


# -- queries ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TaskWindow:
    """The last prompts that a caller sent with one ``task_id``; the current one is the last.

    Attributes:
        texts: Views of the prompts, t of them.
        embeddings: Embeddings of the views, shape (t, dim).
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
        task_id: The request's ``task_id``, by which the caller says which task the prompt belongs to.
        window: The task's last prompts, for methods whose card says ``reads_task``; None without a ``task_id``.
        preference: The request's ``preference``, a positive weight for each wanted expert, by name.
        threshold: Threshold that the caller appended to the policy's name (``policy:0.3``).
        answer: The base's answer to `question`, for methods whose card says ``asks_base``.
        parts: Embeddings of the prompt's `routers.text.segments.parts_of`, shape (4, dim), for methods whose card says
            ``reads_parts``.
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
        """Return whether the caller may use this expert."""
        return self.candidates is None or expert_id in self.candidates


# -- decisions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WeightedExpert:
    """An expert that the decision uses, with its weight. The weights of a decision need not sum to one."""

    expert_id: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class GateChoice:
    """A gate of the recipe language, which weights the decision's experts per token and layer inside the model.

    Attributes:
        kind: Name of the gate, for example ``arrow``. ``fixed`` uses the decision's own weights; it differs from a mix
            only with the aggregation ``ab``.
        k: Number of experts that a token may use in a layer; None for the gate's default.
        temperature: Temperature of the softmax over the experts' scores.
        aggregation: ``output`` combines the experts' outputs, ``ab`` their A and their B matrices separately.
    """

    kind: str
    k: int | None = None
    temperature: float = 1.0
    aggregation: Literal["output", "ab"] = "output"


@dataclass(frozen=True, slots=True)
class ScoredExpert:
    """A candidate with its score, on the router's own scale; larger is better."""

    expert_id: str
    score: float


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An example prompt that counted for an expert; `similarity` is a cosine."""

    expert_id: str
    example: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Decision:
    """A router's answer.

    Attributes:
        experts: Experts to execute; none to abstain (the base answers), several for a mix or a gate.
        confidence: The router's estimate, in [0, 1], that its first choice is right.
        candidates: Scored candidates, best first, up to the limit of the router's options.
        neighbours: The nearest examples, best first, if the method has any.
        reason: One sentence for people.
        gate: Gate that weights several experts; None for a mix by their own weights.
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


# -- data to fit to ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LibraryExpert:
    """An expert as routers see it: its id, the text of its card, and its example prompts."""

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
    """A prompt with the wanted answer, for methods that adapt to a task or learn from scores.

    Attributes:
        prompt: The prompt.
        answer: The wanted answer.
        task: Task that the prompt belongs to; in-library tasks have the name of their expert.
        metric: Name of the metric that compares an answer with `answer` (`routers.evaluation.answer_metrics`).
    """

    prompt: str
    answer: str
    task: str = ""
    metric: str = "exact_match"


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """Scores of the base and of every expert on labelled prompts: n prompts, M models.

    Attributes:
        models: ``base`` first, then ids of experts, M of them.
        samples: The prompts with their wanted answers, n of them.
        embeddings: Embeddings of the prompts, shape (n, dim).
        scores: The metric's value in [0, 1], larger is better, shape (n, M); NaN if unknown.
        losses: Mean cross-entropy of the wanted answer, nats per token, shape (n, M); NaN if unknown.
        prompt_losses: Mean cross-entropy of the prompt, nats per token, shape (n, M); NaN if unknown.
        entropies: Mean entropy of the next-token distribution over the prompt, nats, shape (n, M), a lower bound from
            the most probable tokens; NaN if unknown.
    """

    models: tuple[str, ...]
    samples: tuple[Sample, ...]
    embeddings: Matrix
    scores: NDArray[np.float64]
    losses: NDArray[np.float64]
    prompt_losses: NDArray[np.float64]
    entropies: NDArray[np.float64]


class Losses(Protocol):
    """The engine as seen by fitters that search for weights."""

    def __call__(
        self, weights: Mapping[str, float], samples: Sequence[Sample], formula: Literal["exact", "ab"] = "exact"
    ) -> NDArray[np.float64]:
        """Return the mean cross-entropy of each sample's answer, nats per token, shape (n,), under the merged experts.

        ``exact`` merges by the weighted sum of the experts' updates, ``ab`` by the weighted sums of their A and of
        their B matrices. Blocking; for worker threads. Weights may be negative.
        """
        ...


@dataclass(frozen=True, slots=True)
class FitData:
    """The library at one moment, with its examples embedded once for all routers.

    Attributes:
        experts: All active experts, sorted by id.
        embeddings: Embeddings by expert id, shape (num_examples, dim), rows in the order of ``examples``.
        embedder: Name of the embedder, which every artefact records.
        version: Content hash of experts, examples and embedder: equal versions are equal data.
        bare: Embeddings of the examples without their template (`routers.text.templates`), by expert id; a missing
            expert has no templates.
        scores: The table that ``moergate score`` filled, if there is one.
        samples: Labelled prompts that were given for this policy (``moergate fit --data``).
        losses: The engine, for methods that search for weights; None if there is none.
        embed: The embedder, for methods that embed further texts; blocking, for worker threads.
        previous: The policy's router in service, fitted with the same embedder, if the policy follows its library. A
            method may reuse from it what a small change of the library cannot affect. None if a fit was requested.
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
    """The result of a fit: arrays and plain JSON data, nothing executable.

    `arrays` contains only numbers (any shape and dtype that safetensors can store), `data` only JSON values.
    """

    router: str
    arrays: Mapping[str, NDArray[Any]]
    data: Mapping[str, Any]
    library_version: str
    embedder: str


# -- the method's card and the protocol ---------------------------------------------------------------------------


Need = Literal["examples", "descriptions", "scores", "losses", "samples", "engine"]
"""Data that a method cannot be fitted without."""


Standing = Literal["recommended", "comparison", "baseline"]
"""Whether a method is recommended, kept for comparison, or a baseline that others must beat."""


class RouterConfig(BaseModel):
    """Base class of every router's options: unknown keys are rejected, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class MethodCard:
    """A method in the nine design choices of the survey of model MoErging (Yadav et al., 2024), and what it needs.

    Attributes:
        needs: What `fit` requires (`server.policies.method_cards` names the command that supplies each).
        needs_embedding: Whether `route` reads ``query.embedding``.
        embedder: ``base`` for methods on the base model's own hidden states; empty for the gateway's embedder.
        reads_task: Whether `route` reads ``query.window``.
        reads_parts: Whether `route` reads ``query.parts``.
        asks_base: Whether `route` needs the base's answer to `question` first (`AsksBase`).
        may_read_scores: Whether `fit` uses the table of scores with some options but does not always need it.
        refit: ``cheap`` methods are refitted whenever the library changes; others are marked stale.
        cost: Cost per request, in words.
        differences: Differences from the paper, in words.
        standing: Whether this project recommends the method, keeps it for comparison, or has it as a baseline.
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
    """A routing method. tests/contract checks the contract that the module's docstring describes."""

    card: ClassVar[MethodCard]
    config_class: ClassVar[type[RouterConfig]]

    @classmethod
    def fit(cls, config: Any, data: FitData, progress: Progress) -> Artefact:
        """Learn from the library; raises `NotFittable` with what is missing."""
        ...

    @classmethod
    def load(cls, config: Any, artefact: Artefact) -> Router:
        """Build a router from an artefact of `fit`; raises `BadArtefact`."""
        ...

    def route(self, query: RouteQuery) -> Decision:
        """Decide; synchronous, pure, thread-safe."""
        ...


@dataclass(frozen=True, slots=True)
class Question:
    """A question to the base before a decision; the answer is one of the choices.

    Attributes:
        prompt: The user message.
        choices: Answers that constrained decoding allows, at least one.
    """

    prompt: str
    choices: tuple[str, ...]


@runtime_checkable
class AsksBase(Protocol):
    """The additional method of a router whose card says ``asks_base``."""

    def question(self, query: RouteQuery) -> Question | None:
        """Return the question, or None if `route` does not need an answer; synchronous, pure, thread-safe."""
        ...
