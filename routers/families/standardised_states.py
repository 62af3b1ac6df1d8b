"""Hidden states, standardised over a library's examples and scaled to unit length.

    z(h) = (h - m) / s, scaled to unit length;   m, s: mean and standard deviation of the examples' states, (d,) each

A base model's hidden states point in much the same direction whatever the text is, so their cosines are all close
together, also those of out-of-scope prompts. Texts differ in their deviation from the mean. A few dimensions with a
hundred times the size carry little of that difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from routers.base import Matrix
from routers.library.examples import Examples
from routers.maths.unit_rows import to_unit

_MIN_SPREAD = 1e-6


class StateScale(NamedTuple):
    """Mean and standard deviation of a library's hidden states.

    Attributes:
        mean: Mean of the states, shape (d,), float32.
        spread: Standard deviation of the states, shape (d,), float32.
    """

    mean: NDArray[np.float32]
    spread: NDArray[np.float32]

    @classmethod
    def of(cls, examples: Examples) -> Self:
        """Measure a library's examples; `unchanged` if fewer than two experts have any, so that nothing differs."""
        rows = examples.embeddings
        if len(np.unique(examples.owner)) < 2:
            return cls.unchanged(rows.shape[1])
        return cls(rows.mean(axis=0), np.maximum(rows.std(axis=0), _MIN_SPREAD))

    @classmethod
    def unchanged(cls, dim: int) -> Self:
        """Return the scale that leaves states unchanged."""
        return cls(np.zeros(dim, np.float32), np.ones(dim, np.float32))

    @classmethod
    def load(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Read what `arrays` returned; raises KeyError or ValueError."""
        mean, spread = (np.asarray(arrays[name], np.float32) for name in ("state_mean", "state_spread"))
        if mean.ndim != 1 or mean.shape != spread.shape or not bool((spread > 0).all()):
            raise ValueError(f"states' mean of shape {mean.shape} and spread of shape {spread.shape}")
        return cls(mean, spread)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return the arrays for an artefact."""
        return {"state_mean": self.mean, "state_spread": self.spread}

    def standardised(self, states: Matrix) -> Matrix:
        """Return (h - m) / s of each state, shape (n, d)."""
        return np.asarray((states - self.mean) / self.spread, np.float32)

    def __call__(self, states: Matrix) -> Matrix:
        """Return z of each state, shape (n, d)."""
        return to_unit(self.standardised(states))
