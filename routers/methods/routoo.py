"""Router `routoo`: the model with the best predicted score for its cost (Mohammadshahi et al., 2024).

    score(m | q) = w_m · q + b_m            ridge regression on the known scores of m
    choose         argmax_m  score(m | q) - λ · cost_m

Routoo's predictor is a language model with an embedding for every expert. Here it is one ridge regression per model on
the frozen embedding, in closed form. With x and y centred over the n_m prompts whose score of m is known,

    w_m = (XᵀX + ridge · 1)⁻¹ Xᵀy           b_m = mean(y) - w_m · mean(x)

λ ≥ 0 is the price of a unit of cost, in score. Without a budget it is 0. With a budget it is the lowest price at which
the choices over the table's prompts meet the budget on average. The mean cost decreases in steps as λ grows, so
bisection finds that price. It is the multiplier of the budget in the linear programme

    maximise  mean_i Σ_m z_im score(m | x_i)    with  mean_i Σ_m z_im cost_m ≤ budget,  Σ_m z_im = 1,  z ≥ 0

The programme would spend the rest of the budget by splitting the prompts that are exactly at the price; here the
cheaper model answers these. The predictions that determine λ leave each prompt out of its own regression (in closed
form for ridge: y - (y - ŷ) / (1 - h)), as for new prompts. Fitted predictions are too confident, and the budget would
not hold.

If the base is best, the router abstains. Shapes: n labelled prompts, d dimensions, M = 1 + E models; w (M, d). Cost:
M · d multiplications per request; fitting solves d equations for each set of prompts that models share.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from routers.base import Floats, MethodCard, Progress, RouteQuery, name_of
from routers.errors import NotFittable
from routers.families.cards import SCORE_TABLE_CARD
from routers.families.score_table import Mask, Scored, TableConfig, TableRouter, Values
from routers.families.scoring import Learned

Cost = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RoutooConfig(TableConfig):
    """Options of `routoo`."""

    cost_base: Cost = Field(1.0, description="Cost of an answer of the base, in any unit.")
    cost_expert: Cost = Field(1.0, description="Cost of an answer of an expert that is not in `costs`.")
    costs: dict[str, Cost] = Field(default_factory=dict, description="Cost of an answer, by the expert's name.")
    budget: Cost | None = Field(None, description="Maximum mean cost of an answer; unset: no limit.")
    ridge: float = Field(1.0, gt=0, description="Weight of the penalty on w; larger values are smoother.")


class RoutooRouter(TableRouter):
    """Routes to the model with the best predicted score for its cost."""

    card: ClassVar[MethodCard] = replace(
        SCORE_TABLE_CARD,
        name="routoo",
        title="Routoo: predicted score for the cost",
        paper="Mohammadshahi et al., Routoo: Learning to Route to Large Language Models Effectively, 2024 "
        "(arXiv:2401.13979)",
        generalization="prompts like those of the table; the base answers where it is the better buy",
        cost="one product with M rows",
        differences=(
            "ridge regression on the frozen embedding instead of a language model as the predictor",
            "one price meets the budget on average over prompts, instead of in the order of a batch",
        ),
        standing="recommended",
    )
    config_class: ClassVar[type[TableConfig]] = RoutooConfig

    @classmethod
    def learn(cls, config: RoutooConfig, scored: Scored, progress: Progress) -> Learned:
        """Fit w (M, d), b (M,), the costs (M,) and λ; raises `NotFittable` if every model exceeds the budget."""
        names = [name_of(expert) for expert in scored.experts]
        costs = np.array([config.cost_base, *(config.costs.get(name, config.cost_expert) for name in names)])
        progress(0, 1)
        weights, bias, predicted = fit_ridge(scored.embeddings.astype(np.float64), scored.scores, config.ridge)
        price = 0.0
        if config.budget is not None:
            known = np.isfinite(bias)
            cheapest = float(costs[known].min())
            if config.budget < cheapest:
                raise NotFittable(f"the budget is {config.budget:g}, but the cheapest model costs {cheapest:g}")
            price = price_for(predicted[:, known], costs[known], config.budget)
        progress(1, 1)
        return Learned({"weights": weights, "bias": bias, "costs": costs}, {"price": price})

    def prepare(self, learned: Learned) -> None:
        """Take w, b, the costs and λ."""
        self._weights, self._bias, self._costs = (
            np.asarray(learned.arrays[name], np.float64) for name in ("weights", "bias", "costs")
        )
        self.price = float(learned.data["price"])
        num_models = 1 + len(self.experts)
        if self._weights.ndim != 2 or {len(self._weights), len(self._bias), len(self._costs)} != {num_models}:
            raise ValueError(f"weights, bias and costs for another number of models than {num_models}")

    def values(self, query: RouteQuery, allowed: Mask) -> Values:
        """Return predicted scores minus the price of the costs."""
        predicted = self._weights @ np.asarray(query.embedding, np.float64) + self._bias
        unit = f"Predicted score minus {self.price:.3g} per unit of cost is" if self.price else "Predicted score is"
        return Values(predicted - self.price * self._costs, predicted, unit)


def fit_ridge(x: Floats, scores: Floats, ridge: float) -> tuple[Floats, Floats, Floats]:
    """Fit a regression for each model, and predict the scores of the table's own prompts.

    Args:
        x: Embeddings of the prompts, shape (n, d).
        scores: Scores, shape (n, M); NaN where not known.
        ridge: Weight of the penalty.

    Returns:
        w, shape (M, d); b, shape (M,); predictions for each prompt that do not use its own score, shape (n, M). All are
        NaN for a model without a score.
    """
    num_models, dim = scores.shape[1], x.shape[1]
    weights, bias = np.full((num_models, dim), np.nan), np.full(num_models, np.nan)
    predicted = np.full(scores.shape, np.nan)
    patterns, group = np.unique(np.isfinite(scores), axis=1, return_inverse=True)
    for number, pattern in enumerate(patterns.T):
        rows, models = np.flatnonzero(pattern), np.flatnonzero(group.reshape(-1) == number)
        if not len(rows):
            continue
        own, y = x[rows], scores[np.ix_(rows, models)]
        centre, mean = own.mean(axis=0), y.mean(axis=0)
        centred = own - centre
        solved = np.linalg.solve(centred.T @ centred + ridge * np.eye(dim), centred.T)  # (d, n_m)
        weights[models] = (solved @ (y - mean)).T
        bias[models] = mean - weights[models] @ centre
        predicted[:, models] = x @ weights[models].T + bias[models]
        if len(rows) > 1:  # a single prompt leaves none to predict it from
            leverage = 1 / len(rows) + np.einsum("nd,dn->n", centred, solved)
            residual = y - predicted[np.ix_(rows, models)]
            predicted[np.ix_(rows, models)] = y - residual / (1 - leverage)[:, None]
    return weights, bias, predicted


def price_for(predicted: Floats, costs: Floats, budget: float) -> float:
    """Return the smallest λ at which argmax score - λ · cost, (n, M) and (M,), meets the budget on average."""

    def mean_cost(price: float) -> float:
        net = predicted - price * costs
        best = net == net.max(axis=1, keepdims=True)
        return float(np.where(best, costs, np.inf).min(axis=1).mean())

    allowance = budget * (1 + 1e-12)  # a mean of equal costs may round
    if mean_cost(0.0) <= allowance:
        return 0.0
    low, high = 0.0, 1.0
    while mean_cost(high) > allowance:
        low, high = high, high * 2
    while high - low > 1e-12 * high and low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if mean_cost(middle) > allowance else (low, middle)
    return high
