"""The logistic function against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from routers.maths.sigmoid import sigmoid, sigmoids

ARGUMENTS = [-1e300, -700.0, -41.0, -3.5, 0.0, 1e-9, 2.0, 39.0, 1e300]


def test_is_the_logistic_function_without_overflow() -> None:
    expected = expit(np.array(ARGUMENTS))
    np.testing.assert_allclose(sigmoids(np.array(ARGUMENTS)), expected, rtol=1e-12, atol=1e-17)
    assert [sigmoid(x) for x in ARGUMENTS] == pytest.approx(expected.tolist(), rel=1e-12, abs=1e-17)
