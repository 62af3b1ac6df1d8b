"""Router `route_llm`: a strong model where it probably beats a weak one, the weak one elsewhere (Ong et al., 2024).

    use the strong model  iff  P(strong wins | q) ≥ τ

The weak model is the base or a cheap expert. The strong one is the expert whose examples are nearest (cosine with their
mean's direction), or an expensive recipe, the equal mix of several experts. Preference rows come from the table of
scores: for each labelled prompt the strong model's score is compared with the weak one's. With ``routed`` that is the
score of the expert that would be chosen for this prompt. A mix is not in the table, so the mean score of its experts
replaces it. `routers.methods.route_llm_win_rates` has the estimators of P.

τ is the query's own (a caller's ``policy:0.3``), or the option, or calibrated: the (1 - strong_share) quantile of P
over the table's prompts, so that this share of similar prompts is routed to the strong model. τ ≤ 0 always takes the
strong model, τ > 1 always the weak one. If P is the same for all prompts, no share can be cut off, and the strong model
is taken if it wins more than half.

Shapes: n labelled prompts, d dimensions, E experts; means (E, d). Cost: one product with E means (``routed``), and one
with d numbers (``mf``), 3 rows (``classifier``) or the n prompts (``sw_ranking``). Win rates, rows, training and
calibration follow the authors' code, which drops ties for ``mf`` and counts them as half for ``sw_ranking``.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from routers.artefacts import reading
from routers.base import (
    BASE,
    MAX_EXPERTS,
    Artefact,
    Decision,
    FitData,
    Floats,
    Matrix,
    MethodCard,
    Progress,
    RouteQuery,
    RouterConfig,
    ScoredExpert,
    WeightedExpert,
)
from routers.errors import NotFittable
from routers.families.options import CandidateOptions
from routers.families.score_table import Scored, scored_of
from routers.library.examples import examples_of
from routers.maths.unit_rows import to_unit
from routers.methods.route_llm_win_rates import Estimator, learn_win_rates, win_rates

_SAME_SCORE = 1e-9


class RouteLlmConfig(CandidateOptions):
    """Options of `route_llm`."""

    strong: Literal["routed"] | Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_EXPERTS)] = Field(
        "routed",
        description="The strong model: the nearest expert (routed), or names of experts to mix with equal weights.",
    )
    weak: str = Field(BASE, min_length=1, description="The weak model: base, or the name of a cheap expert.")
    estimator: Estimator = Field(
        "mf", description="Estimator of the win rate: mf, sw_ranking, classifier, or random as a baseline."
    )
    threshold: float | None = Field(None, description="Minimum win rate for the strong model; unset: by strong_share.")
    strong_share: float = Field(
        0.5, gt=0, le=1, description="Share of the table's prompts for the strong model; sets the threshold."
    )
    dim: int = Field(128, ge=1, le=4096, description="Dimensions of the factors (mf).")
    epochs: int = Field(100, ge=1, description="Training passes over the prompts; small tables get more (mf).")
    noise: float = Field(0.1, ge=0, description="Standard deviation of the noise on embeddings in training (mf).")
    ridge: float = Field(1e-3, gt=0, description="Weight of the penalty; larger values are smoother (classifier).")
    seed: int = Field(0, ge=0, description="Seed of the training (mf) and of the random numbers (random).")


class RouteLlmRouter:
    """Routes to a strong model where it probably beats a weak one."""

    card: ClassVar[MethodCard] = MethodCard(
        name="route_llm",
        title="RouteLLM: strong or weak by win rate",
        paper="Ong et al., RouteLLM: Learning to Route LLMs with Preference Data, 2024 (arXiv:2406.18665)",
        expert_training="independent",
        expert_data="private; a few example prompts are shared",
        routing_dataset="labelled prompts that the weak and the strong model answered",
        input_granularity="example",
        depth="model",
        selection="top-1",
        aggregation="none",
        generalization="prompts like those of the table; another threshold trades quality for cost",
        user_dataset="none",
        needs=("scores", "examples"),
        refit="costly",
        cost="one product with the experts' means, and the estimator's",
        differences=(
            "the weak model is the base, the strong one the nearest expert or a mix",
            "preferences compare scores; they do not come from people or judges",
            "two models instead of the 64 of Chatbot Arena, so no tiers",
            "the gateway's embedder; a linear classifier instead of BERT; no causal language model",
        ),
        standing="recommended",
    )
    config_class: ClassVar[type[RouterConfig]] = RouteLlmConfig

    def __init__(
        self, config: RouteLlmConfig, experts: tuple[str, ...], arrays: dict[str, NDArray[Any]], facts: dict[str, Any]
    ) -> None:
        self._config = config
        self._experts = experts
        self._directions = np.asarray(arrays["directions"], np.float32)
        self._arrays = arrays
        self._strong = None if facts["strong"] is None else tuple(str(expert) for expert in facts["strong"])
        self._weak = str(facts["weak"])
        self._estimator = config.estimator
        self.threshold = float(facts["threshold"]) if config.threshold is None else config.threshold
        if self._directions.ndim != 2 or len(self._directions) != len(experts):
            raise ValueError(f"directions of shape {self._directions.shape} for {len(experts)} experts")
        if facts["estimator"] != config.estimator:
            raise ValueError(f"it was fitted with the estimator {facts['estimator']!r}")

    @classmethod
    def fit(cls, config: RouteLlmConfig, data: FitData, progress: Progress) -> Artefact:
        """Learn win rates from the table; raises `NotFittable` if it or a named expert is missing."""
        progress(0, 1)
        scored = scored_of(data)
        examples = examples_of(data)
        named = {expert.name: expert.expert_id for expert in sorted(data.experts, key=lambda e: e.expert_id)}
        wanted = [] if config.strong == "routed" else list(config.strong)
        missing = sorted({*wanted, config.weak} - {BASE} - named.keys())
        if missing:
            raise NotFittable(f"the library has no expert named {', '.join(missing)}")
        weak = BASE if config.weak == BASE else named[config.weak]
        strong = None if config.strong == "routed" else sorted({named[name] for name in config.strong})
        directions = to_unit(examples.mean_of_experts())
        able = np.flatnonzero(np.isfinite(directions).all(axis=1)).tolist()  # experts with an example
        x, y = preference_rows(scored, examples.experts, directions, strong, weak)
        arrays: dict[str, NDArray[Any]] = learn_win_rates(
            config.estimator,
            x.astype(np.float64),
            y,
            dim=config.dim,
            epochs=config.epochs,
            noise=config.noise,
            ridge=config.ridge,
            seed=config.seed,
        )
        rates = win_rates(config.estimator, arrays, scored.texts, scored.embeddings.astype(np.float64), config.seed)
        progress(1, 1)
        return Artefact(
            router=cls.card.name,
            arrays={**arrays, "directions": directions[able]},
            data={
                "experts": [examples.experts[number] for number in able],
                "strong": strong,
                "weak": weak,
                "estimator": config.estimator,
                "threshold": calibrated(rates, config.strong_share),
            },
            library_version=data.version,
            embedder=data.embedder,
        )

    @classmethod
    def load(cls, config: RouteLlmConfig, artefact: Artefact) -> Self:
        """Build the router from an artefact of `fit`; raises `BadArtefact`."""
        with reading(artefact, cls.card.name):
            experts = tuple(str(expert) for expert in artefact.data["experts"])
            return cls(config, experts, dict(artefact.arrays), dict(artefact.data))

    def route(self, query: RouteQuery) -> Decision:
        """Choose the strong model if its win rate reaches the threshold, else the weak one."""
        if query.embedding is None or not np.isfinite(query.embedding).all():
            return Decision((), 0.0, reason="The prompt has no text that can be compared.")
        weak = () if self._weak == BASE or not query.allows(self._weak) else (WeightedExpert(self._weak),)
        instead = "the weak expert" if weak else "the base"
        x = np.asarray(query.embedding, np.float64)[None]
        rate = float(win_rates(self._estimator, self._arrays, (query.text,), x, self._config.seed)[0])
        strong, candidates = self._strong_model(query, rate)
        if not strong:
            return Decision(weak, 0.0, reason=f"No strong expert is allowed; {instead} answers.")
        threshold = self.threshold if query.threshold is None else query.threshold
        wins = rate >= threshold
        relation = "reaches" if wins else "is below"
        return Decision(
            experts=strong if wins else weak,
            confidence=float(np.clip(rate, 0.0, 1.0)),
            candidates=candidates,
            reason=f"Win rate {rate:.3f} of the strong model {relation} the threshold {threshold:.3f}"
            + ("." if wins else f"; {instead} answers."),
        )

    def _strong_model(
        self, query: RouteQuery, rate: float
    ) -> tuple[tuple[WeightedExpert, ...], tuple[ScoredExpert, ...]]:
        """Return the strong model for this caller and prompt, and the experts that were considered."""
        max_candidates = self._config.max_candidates
        if self._strong is not None:
            allowed = [expert for expert in self._strong if query.allows(expert)]
            mix = tuple(WeightedExpert(expert, 1 / len(allowed)) for expert in allowed)
            return mix, tuple(ScoredExpert(expert, rate) for expert in allowed)[:max_candidates]
        if not self._experts:
            return (), ()
        cosines = np.asarray(self._directions @ np.asarray(query.embedding, np.float32), np.float64)
        numbers = [
            number
            for number in np.argsort(-cosines, kind="stable").tolist()
            if self._experts[number] != self._weak and query.allows(self._experts[number])
        ]
        ranked = tuple(
            ScoredExpert(self._experts[number], float(cosines[number])) for number in numbers[:max_candidates]
        )
        return tuple(WeightedExpert(scored.expert_id) for scored in ranked[:1]), ranked


def preference_rows(
    scored: Scored, experts: tuple[str, ...], directions: Matrix, strong: list[str] | None, weak: str
) -> tuple[Matrix, Floats]:
    """Return embeddings, (n, d), and outcomes for the strong model, (n,), of prompts with both scores."""
    num_prompts = len(scored.embeddings)
    unknown = np.full(num_prompts, np.nan)
    column = {BASE: 0, **{expert: number for number, expert in enumerate(scored.experts, 1)}}

    def scores_of(model: str) -> Floats:
        return scored.scores[:, column[model]] if model in column else unknown

    if strong is not None:
        theirs = np.mean([scores_of(expert) for expert in strong], axis=0)
    else:
        theirs = unknown.copy()
        able = np.isfinite(directions).all(axis=1) & np.array([expert != weak for expert in experts], dtype=bool)
        if able.any() and num_prompts:
            nearest = np.where(able, scored.embeddings @ directions.T, -np.inf).argmax(axis=1)
            for number in np.unique(nearest).tolist():
                theirs[nearest == number] = scores_of(experts[number])[nearest == number]
    difference = theirs - scores_of(weak)
    outcomes = np.where(np.abs(difference) <= _SAME_SCORE, 0.5, (difference > 0).astype(np.float64))
    known = np.isfinite(difference)
    return scored.embeddings[known], outcomes[known]


def calibrated(rates: Floats, strong_share: float) -> float:
    """Return the threshold that this share of the win rates reaches."""
    if not len(rates) or np.ptp(rates) < 1e-9:
        return float(np.nextafter(0.5, 1.0))
    return float(np.quantile(rates, 1 - strong_share))
