"""Made-up tables of scores, as FitData: random or spelled out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from routers.base import FitData, RouteQuery, Router, Sample, ScoreTable, TaskWindow, no_progress
from routers.families.score_table import TableRouter
from tests.unit.routers.builders import expert_id, library_of, unit


def table_data(
    embeddings: np.ndarray,
    scores: np.ndarray,
    tasks: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    experts: dict[str, np.ndarray] | None = None,
) -> FitData:
    """A library with this table; columns are the base and experts 0, 1, … unless `models` names them.

    `experts` are the library's experts with their examples' embeddings; those of the table, with one each, by default.
    """
    num_rows, num_models = scores.shape
    names = list(models) if models is not None else ["base", *(expert_id(i) for i in range(num_models - 1))]
    dim = embeddings.shape[1]
    if experts is None:
        one = unit(np.eye(1, dim))
        experts = {name: one for name in names if name != "base"}
    given = tasks if tasks is not None else [""] * num_rows
    samples = tuple(Sample(f"prompt {row}", "answer", task) for row, task in enumerate(given))
    nothing = np.full(scores.shape, np.nan)
    table = ScoreTable(
        tuple(names), samples, embeddings.astype(np.float32), scores.astype(np.float64), nothing, nothing, nothing
    )
    return replace(library_of(experts), scores=table)


def random_table(
    seed: int, num_rows: int = 60, num_models: int = 4, dim: int = 6, unknown: float = 0.0, graded: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of unit length and scores that depend on them a little, some of them NaN."""
    rng = np.random.default_rng(seed)
    embeddings = unit(rng.normal(size=(num_rows, dim)))
    lean = embeddings @ rng.normal(size=(dim, num_models)) + 0.5 * rng.normal(size=(num_rows, num_models))
    scores = 1 / (1 + np.exp(-2 * lean)) if graded else (lean > 0).astype(np.float64)
    scores[rng.random(scores.shape) < unknown] = np.nan
    return embeddings, scores


def fitted(router: type, data: FitData, **options: object) -> Router:
    """A router of this class, fitted and loaded."""
    config = router.config_class.model_validate(options)  # type: ignore[attr-defined]
    loaded: Router = router.load(config, router.fit(config, data, no_progress))  # type: ignore[attr-defined]
    return loaded


def window(rows: np.ndarray) -> TaskWindow:
    """A task's prompts, the last one the present one."""
    return TaskWindow(tuple(f"prompt {row}" for row in range(len(rows))), rows.astype(np.float32))


def ask(router: Router, embedding: np.ndarray, allowed: Sequence[bool] | None = None) -> np.ndarray:
    """The values of all models for a prompt, shape (M,)."""
    assert isinstance(router, TableRouter)
    mask = np.ones(1 + len(router.experts), dtype=bool) if allowed is None else np.array(allowed)
    return router.values(RouteQuery("", embedding.astype(np.float32)), mask).scores
