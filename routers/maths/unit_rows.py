"""Scaling vectors to length one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_unit(rows: NDArray[Any]) -> NDArray[Any]:
    """Scale each row (last axis) to length one, keeping its dtype; rows of zeros or NaN stay unchanged."""
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12), rows.dtype)
