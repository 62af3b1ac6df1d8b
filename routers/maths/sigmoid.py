"""The logistic function, without overflow."""

from __future__ import annotations

import math

import numpy as np

from routers.base import Floats

_LIMIT = 40.0
"""Beyond this argument the result equals 0 or 1 to double precision."""


def sigmoid(x: float) -> float:
    """Return 1 / (1 + e^-x)."""
    return 1 / (1 + math.exp(-min(max(x, -_LIMIT), _LIMIT)))


def sigmoids(x: Floats) -> Floats:
    """Return `sigmoid` of each element, in the shape of `x`."""
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -_LIMIT, _LIMIT))), np.float64)
