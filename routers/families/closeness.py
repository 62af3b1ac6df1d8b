"""Closeness of a prompt to the subspace of an expert's examples; an out-of-scope prompt is mostly outside of it.

    closeness(e) = |U_e q|        U_e: the first right singular vectors of e's examples, up to `MAX_DIRECTIONS`

The length of the prompt's projection on the span of U_e is its cosine to that span. A mean keeps only what the examples
have in common, and a prompt of another kind can be as near to it as they are; few such prompts are in the span.
Examples are not centred, so the first direction is close to that of their mean.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from routers.base import Matrix
from routers.library.examples import Examples

MAX_DIRECTIONS = 8

_SMALLEST = 1e-6
"""Share of the largest eigenvalue below which a direction is a rounding error."""


def directions_of(examples: Examples) -> NDArray[np.float16]:
    """Return orthonormal directions of each expert's examples, shape (E, `MAX_DIRECTIONS`, d), padded with zeros."""
    found = np.zeros((len(examples.experts), MAX_DIRECTIONS, examples.embeddings.shape[1]), np.float16)
    for expert in np.unique(examples.owner).tolist():
        found_here = _leading(examples.embeddings[examples.owner == expert])
        found[expert, : len(found_here)] = found_here
    return found


def closeness(directions: NDArray[np.float16], prompts: Matrix) -> NDArray[np.float64]:
    """Return |U q| of each prompt, shape (p,); `directions` (p, `MAX_DIRECTIONS`, d) holds one U for each."""
    parts = np.einsum("pkd,pd->pk", directions.astype(np.float32), prompts)
    return np.asarray(np.linalg.norm(parts, axis=1), np.float64)


def _leading(rows: Matrix) -> NDArray[np.float64]:
    """Return the first right singular vectors, from the smaller of the two Gram matrices."""
    own = rows.astype(np.float64)
    is_wide = own.shape[0] <= own.shape[1]
    values, vectors = np.linalg.eigh(own @ own.T if is_wide else own.T @ own)
    values, vectors = values[::-1][:MAX_DIRECTIONS], vectors[:, ::-1][:, :MAX_DIRECTIONS]
    kept = values > _SMALLEST * max(float(values[0]), _SMALLEST)
    values, vectors = values[kept], vectors[:, kept]
    return np.asarray((vectors.T @ own) / np.sqrt(values)[:, None] if is_wide else vectors.T, np.float64)
