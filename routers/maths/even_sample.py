"""Evenly spaced samples, for wherever a sample need not be random."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def evenly_spaced(num: int, max_num: int) -> NDArray[np.int64]:
    """Return up to `max_num` evenly spaced indices below `num`, ascending and unique; both ends if `max_num` ≥ 2."""
    return np.linspace(0, num - 1, min(max_num, num)).astype(np.int64)
