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

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


def no_progress(_done: int, _total: int) -> None:
    """Report nothing; the default of every fitter."""


# -- what a router is asked ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RouteQuery:
    """One request as a router sees it.

    Attributes:
        text: The view of the prompt: system text and the last user turns, as one string.
        embedding: The view's embedding, or None for methods whose card says ``needs_embedding=False``.
        candidates: Ids (``name@sha8``) of the experts that this caller may use; None means all of them. A router
            must never return, score or quote an expert outside this set.
    """

    text: str
    embedding: Vector | None = None
    candidates: frozenset[str] | None = None

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
        kind: Name of the gate, for example ``arrow``.
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


@dataclass(frozen=True, slots=True)
class FitData:
    """The library at one moment, with its examples embedded once for all routers.

    Attributes:
        experts: All active experts, sorted by id.
        embeddings: For each expert id, shape (num_examples, dim), rows in the order of ``examples``.
        embedder: Name of the embedder, part of every artefact's provenance.
        version: Content hash of experts, examples and embedder: equal versions are equal data.
        bare: As `embeddings`, of the examples without their template (`routers.templates`); an expert that is
            missing counts as having none to leave out.
    """

    experts: tuple[LibraryExpert, ...]
    embeddings: Mapping[str, Matrix]
    embedder: str
    version: str
    bare: Mapping[str, Matrix] = field(default_factory=dict)


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


class RouterConfig(BaseModel):
    """Base of every router's options: unknown keys are refused, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class MethodCard:
    """What a method is, in the nine design choices of the survey of model MoErging (Yadav et al., 2024), and its needs.

    Attributes:
        needs: What `fit` requires of the library, in words for people (``"examples"``, ``"scores"``).
        needs_embedding: Whether `route` reads ``query.embedding``.
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
    needs: tuple[str, ...] = ()
    needs_embedding: bool = True
    refit: Literal["cheap", "costly"] = "cheap"
    cost: str = ""
    differences: Sequence[str] = field(default_factory=tuple)


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
