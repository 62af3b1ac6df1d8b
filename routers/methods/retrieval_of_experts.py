"""Router `retrieval_of_experts`: each prompt of a task votes for the expert of its nearest example (Jang et al., 2023).

    vote(q) = expert of argmax_x q · x        over up to 100 examples of each expert that may be used
    choose the expert with the most votes of the task's last 32 prompts

The prompts are those of the caller's ``task_id``. Without one, the request's prompt votes alone, by its one nearest
neighbour. Ties go to the larger mean similarity of the votes, then by name (in the authors' code to the first vote).
With ``top_k`` above one, the k experts with the most votes are mixed with equal weights, never one without a vote; the
code averages their parameters.

The paper embeds "Answer Choices: …, Instance: …" with all-MiniLM-L6-v2. The gateway does not know the labels of a
prompt, so it embeds the prompt's view with its own embedder. The router abstains only if a threshold on the mean
similarity of the winning votes is set. Confidence is the winner's share of the votes.

Shapes: t prompts, n examples, d dimensions. Cost: one product (t, d) × (d, n), up to 32 times that of `knn`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Self

import numpy as np
from pydantic import Field

from routers.artefacts import reading
from routers.base import (
    MAX_EXPERTS,
    Artefact,
    Decision,
    FitData,
    MethodCard,
    Neighbour,
    Progress,
    RouteQuery,
    RouterConfig,
    ScoredExpert,
)
from routers.families.cards import EMBEDDING_CARD
from routers.families.scoring import asked
from routers.families.selection import equal_weights
from routers.library.examples import Examples, evenly, examples_of


class RetrievalOfExpertsConfig(RouterConfig):
    """Options of `retrieval_of_experts`."""

    num_queries: int = Field(32, ge=1, le=1000, description="Number of a task's last prompts that vote.")
    max_examples: int = Field(
        100, ge=1, description="Number of examples of an expert that are kept at most, evenly spaced."
    )
    top_k: int = Field(
        1, ge=1, le=MAX_EXPERTS, description="Number of experts that are mixed, those with the most votes."
    )
    threshold: float | None = Field(
        None, ge=-1, le=1, description="Abstain below this mean similarity of the winning votes; unset: never."
    )
    max_neighbours: int = Field(5, ge=0, description="Number of nearest examples that a decision quotes at most.")


class RetrievalOfExpertsRouter:
    """Routes to the expert with the most votes of a task's prompts."""

    card: ClassVar[MethodCard] = replace(
        EMBEDDING_CARD,
        name="retrieval_of_experts",
        title="Retrieval of Experts: a task's prompts vote",
        paper="Jang et al., Exploring the Benefits of Training Expert Language Models, 2023 (arXiv:2302.03202)",
        expert_data="private; up to 100 example prompts are shared",
        input_granularity="task",
        generalization="unseen tasks that resemble a known one",
        reads_task=True,
        cost="one product of the task's last prompts with all examples",
        differences=(
            "prompts are embedded unchanged, without their answer choices",
            "a tie goes to the nearer examples",
            "top_k mixes the experts' outputs, not their parameters",
        ),
        standing="recommended",
    )
    config_class: ClassVar[type[RouterConfig]] = RetrievalOfExpertsConfig

    def __init__(self, config: RetrievalOfExpertsConfig, examples: Examples) -> None:
        self._config = config
        self._examples = examples

    @classmethod
    def fit(cls, config: RetrievalOfExpertsConfig, data: FitData, progress: Progress) -> Artefact:
        """Keep the examples."""
        examples = examples_of(data)
        kept = examples.take(evenly(examples, config.max_examples))
        return Artefact(
            router=cls.card.name,
            arrays={"embeddings": kept.embeddings, "owner": kept.owner},
            data={"experts": list(kept.experts), "examples": list(kept.texts)},
            library_version=data.version,
            embedder=data.embedder,
        )

    @classmethod
    def load(cls, config: RetrievalOfExpertsConfig, artefact: Artefact) -> Self:
        """Build the router from an artefact of `fit`; raises `BadArtefact`."""
        with reading(artefact, cls.card.name):
            experts, texts = (tuple(str(text) for text in artefact.data[key]) for key in ("experts", "examples"))
            embeddings = np.asarray(artefact.arrays["embeddings"], np.float32)
            owner = np.asarray(artefact.arrays["owner"], np.int32)
            if embeddings.ndim != 2 or not owner.shape == (len(embeddings),) == (len(texts),):
                raise ValueError(f"arrays of different lengths for {len(texts)} examples")
            if not np.isin(owner, np.arange(len(experts))).all():
                raise ValueError("examples of an unknown expert")
        return cls(config, Examples(experts, texts, embeddings, owner, texts, embeddings))

    def route(self, query: RouteQuery) -> Decision:
        """Count the votes of the task's last prompts."""
        rows = asked(query, self.card).embeddings[-self._config.num_queries :]
        if not len(rows):
            return Decision((), 0.0, reason="The prompt has no text that can be compared.")
        experts, owner = self._examples.experts, self._examples.owner
        allowed = np.array([query.allows(expert) for expert in experts], bool)[owner]
        if not allowed.any():
            return Decision((), 0.0, reason="No allowed expert has an example.")
        cosines = np.where(allowed, rows @ self._examples.embeddings.T, -np.inf)
        nearest = np.argmax(cosines, axis=1)
        similarity = cosines[np.arange(len(rows)), nearest].astype(np.float64)
        votes = np.bincount(owner[nearest], minlength=len(experts))
        means = np.bincount(owner[nearest], similarity, len(experts)) / np.maximum(votes, 1)
        order = np.lexsort((np.arange(len(experts)), -means, -votes))[: np.count_nonzero(votes)].tolist()
        ranked = [ScoredExpert(experts[number], float(votes[number] / len(rows))) for number in order]
        best, mean = ranked[0], float(means[order[0]])
        threshold = self._config.threshold if query.threshold is None else query.threshold
        reason = (
            f"{votes[order[0]]} of {len(rows)} prompts are nearest to {best.expert_id} (mean similarity {mean:.3f})"
        )
        stays = threshold is None or mean >= threshold
        return Decision(
            experts=equal_weights(ranked[: self._config.top_k]) if stays else (),
            confidence=best.score,
            candidates=tuple(ranked),
            neighbours=self._quoted(dict(sorted(zip(nearest.tolist(), similarity.tolist(), strict=True)))),
            reason=f"{reason}." if stays else f"{reason}, which is below the threshold {threshold:.3f}.",
        )

    def _quoted(self, similarity: dict[int, float]) -> tuple[Neighbour, ...]:
        """Return the examples that decided votes, nearest first, each once with its largest similarity."""
        nearest = sorted(similarity.items(), key=lambda pair: (-pair[1], pair[0]))[: self._config.max_neighbours]
        experts, owner, texts = self._examples.experts, self._examples.owner, self._examples.texts
        return tuple(Neighbour(experts[owner[row]], texts[row], cosine) for row, cosine in nearest)
