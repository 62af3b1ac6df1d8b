"""Small libraries with made-up embeddings: clusters of unit vectors, one an expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from routers.base import FitData, LibraryExpert, Matrix, Router, no_progress
from routers.fitting import fit_data
from routers.methods.knn import KnnConfig, KnnRouter


def unit(rows: Matrix) -> Matrix:
    """Rows scaled to length one."""
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), dtype=np.float32)


def centres(num: int, dim: int = 32, seed: int = 0) -> Matrix:
    """Random directions, shape (num, dim)."""
    return unit(np.random.default_rng(seed).normal(size=(num, dim)))


def around(centre: Matrix, num: int, noise: float, seed: int = 0) -> Matrix:
    """Unit vectors near a direction, shape (num, dim)."""
    spread = np.random.default_rng(seed).normal(size=(num, len(centre))) / np.sqrt(len(centre))
    return unit(centre + noise * spread)


def expert_id(number: int) -> str:
    """An id in the form of the registry's."""
    return f"expert-{number:03d}@{number:08x}"


def library_of(blocks: Mapping[str, Matrix]) -> FitData:
    """A library whose examples have these embeddings; example texts say whose they are."""
    experts = [
        LibraryExpert(name, examples=tuple(f"example {row} of {name}" for row in range(len(rows))))
        for name, rows in blocks.items()
    ]
    return fit_data(experts, blocks, "made-up")


def clustered(
    num_experts: int = 5, num_examples: int = 12, noise: float = 0.6, dim: int = 32, seed: int = 0
) -> FitData:
    """Well separated experts."""
    directions = centres(num_experts, dim, seed)
    return library_of({expert_id(i): around(directions[i], num_examples, noise, seed + i) for i in range(num_experts)})


def fitted_knn(data: FitData, **options: object) -> Router:
    """A knn router, ready."""
    config = KnnConfig.model_validate(options)
    return KnnRouter.load(config, KnnRouter.fit(config, data, no_progress))


def ids(decision_experts: Sequence[object]) -> list[str]:
    """Expert ids of anything that has them, in order."""
    return [item.expert_id for item in decision_experts]  # type: ignore[attr-defined]
