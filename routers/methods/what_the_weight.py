"""Router `what_the_weight`: five ways to weight the experts for a task, the k best merged (Holtermann et al., 2024).

With the t prompts q of the task, up to 100 examples x of expert e, and up to 100 scored samples s of the task:

    uniform    score(e) = 1, for all experts
    sent_sim   score(e) = mean over q and x of their cosine, at least 0
    tfidf      score(e) = cosine of tf-idf of all q as one text and of all x as one text (`routers.text.pair_tfidf`)
    prior      score(e) = moving average over s of P(e | s),  P(e | s) ∝ exp(-loss_e(s)),  new = 0.3 P + 0.7 old
    entropy    score(e) = -u_e, where u_e is the mean entropy of the next token over s
    weight(e)  = score(e) / Σ over the k best, or for entropy (Σu - u_e) / ((k - 1) Σu) over the k best

The prompts are the last ones of the caller's ``task_id``, or the request's alone. ``prior`` and ``entropy`` use the
table of scores instead of examples: the weights of the samples whose task is the ``task_id``, or, if the table has no
such task, the mean over its tasks. Samples that lack an expert's value are skipped. Experts without a value for any
sample of a task have no weight in it.

Differences from the paper and its code: the code takes P(e | s) from the probability of a sample's last token but one;
here it is the geometric mean over its tokens, because the table keeps their mean loss. Experts that the caller may not
use are removed from P afterwards. Words are not stemmed for tfidf, and texts are joined by a line break. Entropies are
lower bounds from the most probable tokens. The paper combines by averaging parameters, which is ``fusion`` (A and B
separately, with the weights), or by a weighted sum of logits, which is not implemented. The default ``mixture`` is the
weighted sum of the experts' updates.

Shapes: E experts, d dimensions, V terms. Cost: sent_sim one product (t, d) × (d, E); tfidf the task's words; the others
one table look-up. Nothing is calibrated: the router abstains only if no allowed expert has a positive score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from routers.artefacts import reading
from routers.base import (
    MAX_EXPERTS,
    Artefact,
    Decision,
    FitData,
    Floats,
    MethodCard,
    Progress,
    RouteQuery,
    RouterConfig,
    ScoredExpert,
    ScoreTable,
    WeightedExpert,
)
from routers.errors import NotFittable
from routers.families.cards import EMBEDDING_CARD
from routers.families.options import CandidateOptions
from routers.families.scoring import Learned, asked
from routers.families.selection import WEIGHTED_FUSION
from routers.fitting import LACKING
from routers.library.examples import evenly, examples_of
from routers.text.pair_tfidf import PairTfidf, count_terms

MAX_SAMPLES = 100
"""Maximum number of examples of an expert, and of samples of a task, that count."""
SMOOTHING = 0.3


class WhatTheWeightConfig(CandidateOptions):
    """Options of `what_the_weight`."""

    scoring: Literal["uniform", "sent_sim", "tfidf", "prior", "entropy"] = Field(
        "sent_sim", description="Source of the weights; prior and entropy need a table of scores with losses."
    )
    top_k: int = Field(5, ge=1, le=10, description="Number of experts that are merged; uniform merges all.")
    combine: Literal["mixture", "fusion"] = Field(
        "mixture",
        description="Sum the experts' updates with the weights (mixture), or their A and their B matrices separately, "
        "as in the paper (fusion).",
    )


class WhatTheWeightRouter:
    """Merges the k best experts of a task with zero-shot weights."""

    card: ClassVar[MethodCard] = replace(
        EMBEDDING_CARD,
        name="what_the_weight",
        may_read_scores=True,
        title="What the Weight: five zero-shot weightings",
        paper="Holtermann et al., What the Weight?!, 2024 (arXiv:2401.12756), and its code",
        routing_dataset="example prompts, or losses and entropies on labelled prompts",
        input_granularity="task",
        selection="top-k",
        aggregation="parameters",
        generalization="new domains, by merging similar ones",
        reads_task=True,
        cost="one product of the task's prompts with E means, or the words of the prompts, or one table look-up",
        differences=(
            "the experts' updates are summed; the option combine=fusion sums A and B separately",
            "logits are not ensembled",
            "prior uses the mean over a sample's tokens, not a single token",
            "words are not stemmed for tfidf",
        ),
    )
    config_class: ClassVar[type[RouterConfig]] = WhatTheWeightConfig

    def __init__(self, config: WhatTheWeightConfig, experts: Sequence[str], learned: Learned) -> None:
        self._config = config
        self._experts = tuple(experts)
        arrays, shape = learned.arrays, (len(self._experts),)
        if config.scoring == "sent_sim":
            self._means = np.asarray(arrays["means"], np.float32)
            self._has_examples = bool(
                np.isfinite(self._means).any()
            )  # without any, the dimension of the embeddings is unknown
            shape = self._means.shape[:1]
        elif config.scoring == "tfidf":
            self._texts = PairTfidf(arrays, [str(term) for term in learned.data["terms"]], len(self._experts))
        elif config.scoring != "uniform":
            self._table = np.asarray(arrays["table"], np.float64)
            self._row = {str(task): row for row, task in enumerate(learned.data["tasks"])}
            shape = self._table.shape[1:]
            if len(self._table) != len(self._row) + 1:
                raise ValueError("the rows of the table do not match the tasks")
        if shape != (len(self._experts),):
            raise ValueError(f"scores of shape {shape} for {len(self._experts)} experts")

    @classmethod
    def fit(cls, config: WhatTheWeightConfig, data: FitData, progress: Progress) -> Artefact:
        """Learn what the scoring needs; raises `NotFittable` if the table of scores lacks it."""
        examples = examples_of(data)
        kept = examples.take(evenly(examples, MAX_SAMPLES))
        learned = Learned()
        if config.scoring == "sent_sim":
            learned = Learned({"means": kept.mean_of_experts()})
        elif config.scoring == "tfidf":
            texts: list[list[str]] = [[] for _ in kept.experts]
            for text, owner in zip(kept.texts, kept.owner.tolist(), strict=True):
                texts[owner].append(text)
            arrays, terms = count_terms(["\n".join(own) for own in texts])
            learned = Learned(arrays, {"terms": terms})
        elif config.scoring != "uniform":
            learned = _from_table(config.scoring, data.scores, kept.experts)
        return Artefact(
            router=cls.card.name,
            arrays=dict(learned.arrays),
            data={"experts": list(kept.experts), "scoring": config.scoring, "learned": dict(learned.data)},
            library_version=data.version,
            embedder=data.embedder,
        )

    @classmethod
    def load(cls, config: WhatTheWeightConfig, artefact: Artefact) -> Self:
        """Build the router from an artefact of `fit`; raises `BadArtefact`."""
        with reading(artefact, cls.card.name):
            data = artefact.data
            if data["scoring"] != config.scoring:
                raise ValueError(f"it was fitted for scoring {data['scoring']!r}, not {config.scoring!r}")
            return cls(config, [str(e) for e in data["experts"]], Learned(artefact.arrays, dict(data["learned"])))

    def route(self, query: RouteQuery) -> Decision:
        """Score the experts, take the k best, and weight them."""
        scores = self._scores(query)
        if scores is None:
            return Decision((), 0.0, reason="The prompt has no text that can be compared.")
        usable = np.isfinite(scores) & np.array([query.allows(expert) for expert in self._experts], bool)
        if self._config.scoring != "entropy":
            usable &= np.nan_to_num(scores) > 0
        if not usable.any():
            return Decision((), 0.0, reason="No allowed expert has anything in common with the task.")
        rows = np.flatnonzero(usable)
        rows = rows[np.argsort(-scores[rows], kind="stable")]  # experts are sorted: ties go by name
        best = rows[: MAX_EXPERTS if self._config.scoring == "uniform" else self._config.top_k]
        weights = _opposite(-scores[best]) if self._config.scoring == "entropy" else scores[best] / scores[best].sum()
        chosen = tuple(WeightedExpert(self._experts[e], float(w)) for e, w in zip(best, weights, strict=True))
        listed = rows[: self._config.max_candidates]
        return Decision(
            experts=chosen,
            confidence=min(chosen[0].weight, 1.0),
            candidates=tuple(ScoredExpert(self._experts[e], float(scores[e])) for e in listed),
            reason=f"{len(chosen)} experts by {self._config.scoring}; the first is {chosen[0].expert_id} "
            f"with weight {chosen[0].weight:.2f}.",
            gate=WEIGHTED_FUSION if self._config.combine == "fusion" else None,
        )

    def _scores(self, query: RouteQuery) -> Floats | None:
        """Return scores, shape (E,), larger is better; NaN if unknown, None if there is nothing to compare."""
        if self._config.scoring == "uniform":
            return np.ones(len(self._experts))
        if self._config.scoring == "sent_sim":
            rows = asked(query, self.card).embeddings
            if not self._has_examples:
                return np.full(len(self._experts), np.nan)
            return np.asarray((rows @ self._means.T).mean(axis=0), np.float64) if len(rows) else None
        if self._config.scoring == "tfidf":
            return self._texts.cosines("\n".join(query.window.texts if query.window else (query.text,)))
        return np.asarray(self._table[self._row.get(query.task_id or "", -1)])


def _opposite(entropies: Floats) -> Floats:
    """Return weights (k,) that sum to one, each proportional to the others' entropies; equal if those are zero."""
    total = entropies.sum()
    if len(entropies) == 1 or total <= 0:
        return np.full(len(entropies), 1 / len(entropies))
    return np.asarray((total - entropies) / ((len(entropies) - 1) * total))


def _from_table(scoring: str, table: ScoreTable | None, experts: Sequence[str]) -> Learned:
    """Score the experts by each task's samples, shape (T + 1, E); the last row is the mean, NaN if not known."""
    what = "losses" if scoring == "prior" else "entropies"
    lacks = LACKING["scores"]
    if table is not None:
        lacks = "the table of scores has none for these experts"
        tasks, rows = [], []
        values = _columns(table, table.prompt_losses if scoring == "prior" else table.entropies, experts)
        for task in sorted({sample.task for sample in table.samples}):
            own = [number for number, sample in enumerate(table.samples) if sample.task == task][:MAX_SAMPLES]
            was_asked = np.isfinite(values[own]).any(axis=0)
            block = values[own][:, was_asked]
            block = block[np.isfinite(block).all(axis=1)]
            if block.size:
                tasks.append(task)
                rows.append(np.full(len(experts), np.nan))
                rows[-1][was_asked] = _posterior(block) if scoring == "prior" else -block.mean(axis=0)
        if tasks:
            return Learned({"table": np.stack([*rows, np.mean(rows, axis=0)])}, {"tasks": tasks})
    raise NotFittable(f"Scoring {scoring!r} learns from {what} of prompts, but {lacks}", "losses")


def _columns(table: ScoreTable, values: Floats, experts: Sequence[str]) -> Floats:
    """Return a table's values of these experts, shape (n, E); NaN for an expert that is not in the table."""
    column = {model: number for number, model in enumerate(table.models)}
    blank = np.full((len(table.samples), 1), np.nan)
    chosen = [column.get(expert, -1) for expert in experts]
    return np.asarray(np.concatenate([values, blank], axis=1)[:, chosen], np.float64)


def _posterior(losses: Floats) -> Floats:
    """Smooth P(e | s) over samples in their order; losses have shape (n, m), the result (m,)."""
    odds = np.exp(losses.min(axis=1, keepdims=True) - losses)
    each = odds / odds.sum(axis=1, keepdims=True)
    smooth = each[0]
    for row in each[1:]:
        smooth = SMOOTHING * row + (1 - SMOOTHING) * smooth
    return np.asarray(smooth)
