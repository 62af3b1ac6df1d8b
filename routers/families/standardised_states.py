"""Hidden states as a library sees them: from its mean, and in units of its spread.

    z(h) = (h - m) / s, brought to unit length;   m, s: mean and standard deviation of the examples' states, (d,) each

A base model's hidden states point much the same way whatever the text is, so that their cosines lie close together,
strangers' too. What tells texts apart is how they differ from the mean, and a few dimensions of a hundredfold size say
little of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from routers.base import Matrix
from routers.library.examples import Examples
from routers.maths.unit_rows import to_unit

_LEAST_SPREAD = 1e-6


class StateScale(NamedTuple):
    """See the module's docstring.

    Attributes:
        mean, spread: Shape (d,), float32.
    """

    mean: NDArray[np.float32]
    spread: NDArray[np.float32]

    @classmethod
    def of(cls, examples: Examples) -> Self:
        """Of a library's examples; `unchanged` if fewer than two experts have any, as nothing differs then."""
        rows = examples.embeddings
        if len(np.unique(examples.owner)) < 2:
            return cls.unchanged(rows.shape[1])
        return cls(rows.mean(axis=0), np.maximum(rows.std(axis=0), _LEAST_SPREAD))

    @classmethod
    def unchanged(cls, dim: int) -> Self:
        """States as they are."""
        return cls(np.zeros(dim, np.float32), np.ones(dim, np.float32))

    @classmethod
    def load(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """From `arrays`; raises KeyError or ValueError."""
        mean, spread = (np.asarray(arrays[name], np.float32) for name in ("state_mean", "state_spread"))
        if mean.ndim != 1 or mean.shape != spread.shape or not bool((spread > 0).all()):
            raise ValueError(f"states' mean of shape {mean.shape} and spread of shape {spread.shape}")
        return cls(mean, spread)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """For an artefact."""
        return {"state_mean": self.mean, "state_spread": self.spread}

    def standardised(self, states: Matrix) -> Matrix:
        """(h - m) / s of each state, shape (n, d)."""
        return np.asarray((states - self.mean) / self.spread, np.float32)

    def __call__(self, states: Matrix) -> Matrix:
        """z of each state, shape (n, d)."""
        return to_unit(self.standardised(states))
