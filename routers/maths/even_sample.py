"""A few of many, evenly spaced: the one way in which samples are taken that need not be random."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def evenly_spaced(num: int, most: int) -> NDArray[np.int64]:
    """Positions of at most `most` of `num` things, ascending and distinct; of two or more, the ends are two."""
    return np.linspace(0, num - 1, min(most, num)).astype(np.int64)
