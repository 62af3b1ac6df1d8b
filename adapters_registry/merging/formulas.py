"""Formulas that merge several LoRA adapters into one ordinary adapter, on plain arrays, module by module.

With sources (A_i, B_i, scaling s_i, weight w_i); the result's scaling is 1. ΔW_i = s_i B_i A_i.

    exact            A' = [w_i s_i A_i], B' = [B_i]               Σ w_i ΔW_i itself; rank Σ r_i
    svd              best approximation of Σ w_i ΔW_i             of a rank to choose; exact from Σ r_i on
    ab_linear        A' = Σ w_i A_i, B' = Σ w_i s_i B_i           LoraHub, LoraRetriever's fusion, mttl
    sqrt_linear      A' = Σ ±√(|w_i| s_i) A_i, B' = Σ √(|w_i| s_i) B_i        PEFT's ``linear``
    magnitude_prune  as sqrt_linear, keeping a share `density` of largest entries of each A_i and B_i
    ties             as magnitude_prune, but the mean over entries of the majority sign (TIES-Merging)
    dare             as sqrt_linear, keeping a random share `density` of entries, scaled by 1/density (DARE)
    dare_ties        DARE's choice of entries, TIES' majority sign

All but the first two need sources of equal rank and merge A and B separately, so that products of one source's B and
another's A appear; PEFT and the papers' own code do the same. A module that a source does not adapt is merged from the
others. The formulas are those of PEFT's ``add_weighted_adapter`` and ``merge_utils``, without its errors with rsLoRA
sources.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapters_registry.errors import CannotMerge
from adapters_registry.merging.method_names import Method

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Factors:
    """One source in one module: A (r, d_in), B (d_out, r), its scaling and its weight."""

    a: Array
    b: Array
    scaling: float
    weight: float


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """Options of the merge formulas.

    Attributes:
        rank: Rank of the result of ``svd``; None means the largest rank of the sources.
        density: Share of entries that ``magnitude_prune``, ``ties``, ``dare`` and ``dare_ties`` keep.
        seed: Seed of the random choice of ``dare`` and ``dare_ties``.
    """

    rank: int | None = None
    density: float = 0.5
    seed: int = 0


def merge(
    modules: Mapping[str, Sequence[Factors]], method: Method, options: MergeOptions
) -> dict[str, tuple[Array, Array]]:
    """Return the merged (A, B) of every module; their scaling is 1.

    Raises:
        CannotMerge: The method needs equal ranks, or an option is out of range.
    """
    if options.rank is not None and options.rank < 1:
        raise CannotMerge(f"rank {options.rank} is below 1")
    if not 0.0 < options.density <= 1.0:
        raise CannotMerge(f"density {options.density:g} must be above 0 and at most 1")
    rng = np.random.default_rng(options.seed)
    merged: dict[str, tuple[Array, Array]] = {}
    for module, sources in sorted(modules.items()):
        if method == "exact":
            merged[module] = _exact(sources)
        elif method == "svd":
            merged[module] = _svd(sources, options.rank or max(len(source.a) for source in sources))
        else:
            ranks = sorted({len(source.a) for source in sources})
            if len(ranks) > 1:
                listed = ", ".join(map(str, ranks))
                raise CannotMerge(f"{method} needs equal ranks, but {module} has {listed}; use exact or svd")
            merged[module] = _elementwise(sources, method, options.density, rng)
    return merged


def _exact(sources: Sequence[Factors]) -> tuple[Array, Array]:
    return (
        np.concatenate([source.weight * source.scaling * source.a for source in sources]),
        np.concatenate([source.b for source in sources], axis=1),
    )


def _svd(sources: Sequence[Factors], rank: int) -> tuple[Array, Array]:
    """Truncate the sum's singular value decomposition, by its small core; the sum itself is never formed."""
    a, b = _exact(sources)
    q_a, r_a = np.linalg.qr(a.T)
    q_b, r_b = np.linalg.qr(b)
    left, values, right = np.linalg.svd(r_b @ r_a.T)
    kept = min(rank, len(values))
    root = np.sqrt(values[:kept])
    return (q_a @ right[:kept].T * root).T, q_b @ left[:, :kept] * root


def _elementwise(
    sources: Sequence[Factors], method: Method, density: float, rng: np.random.Generator
) -> tuple[Array, Array]:
    weights = np.array([source.weight for source in sources])
    scalings = np.array([source.scaling for source in sources])
    if method == "ab_linear":
        return (
            _sum([source.a for source in sources], weights),
            _sum([source.b for source in sources], weights * scalings),
        )
    roots = np.sqrt(np.abs(weights) * scalings)
    combine = _COMBINE[method]
    return (
        combine([source.a for source in sources], np.sign(weights) * roots, density, rng),
        combine([source.b for source in sources], roots, density, rng),
    )


def _sum(tensors: Sequence[Array], weights: Array) -> Array:
    return np.asarray(np.einsum("i,i...->...", weights, np.stack(tensors)))


def _largest(tensor: Array, density: float) -> Array:
    """Keep the `density` share of entries with the largest magnitude; zero the others."""
    num_kept = int(density * tensor.size)
    if num_kept >= tensor.size:
        return tensor
    kept = np.zeros(tensor.size, dtype=bool)
    kept[np.argpartition(-np.abs(tensor).ravel(), max(num_kept - 1, 0))[:num_kept]] = True
    return np.where(kept.reshape(tensor.shape), tensor, 0.0)


def _random(tensor: Array, density: float, rng: np.random.Generator) -> Array:
    """Keep a random `density` share of the entries, scaled to preserve the expected value."""
    return np.where(rng.random(tensor.shape) < density, tensor / density, 0.0)


def _agreed(tensors: Sequence[Array], weights: Array) -> Array:
    """Average the weighted entries whose sign equals that of the sum over all sources."""
    stacked = np.stack(tensors)
    majority = np.where(stacked.sum(axis=0) >= 0, 1.0, -1.0)
    agrees = np.sign(stacked) == majority
    total = np.einsum("i,i...->...", weights, stacked * agrees)
    return np.asarray(total / np.maximum(agrees.sum(axis=0), 1))


_COMBINE: Mapping[str, Callable[[Sequence[Array], Array, float, np.random.Generator], Array]] = {
    "sqrt_linear": lambda tensors, weights, _density, _rng: _sum(tensors, weights),
    "magnitude_prune": lambda tensors, weights, density, _rng: _sum([_largest(t, density) for t in tensors], weights),
    "ties": lambda tensors, weights, density, _rng: _agreed([_largest(t, density) for t in tensors], weights),
    "dare": lambda tensors, weights, density, rng: _sum([_random(t, density, rng) for t in tensors], weights),
    "dare_ties": lambda tensors, weights, density, rng: _agreed([_random(t, density, rng) for t in tensors], weights),
}
