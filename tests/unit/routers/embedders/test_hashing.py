"""The encoder without a model."""

from __future__ import annotations

import numpy as np
import pytest

from routers.embedders.hashing import HashingEncoder


def test_shared_words_are_near() -> None:
    a, b, c = HashingEncoder().encode(
        ["convert the date to ISO", "please convert this date to ISO", "grill aubergines slowly"]
    )
    assert a @ b > 0.6
    assert a @ c < 0.3


def test_is_the_same_on_every_machine() -> None:
    row = HashingEncoder(dim=8).encode(["hello"])[0]
    np.testing.assert_allclose(row, HashingEncoder(dim=8).encode(["HELLO"])[0])
    assert row.tolist() == pytest.approx([-0.378, 0.378, 0, 0.7559, 0, 0, 0.378, 0], abs=1e-4)


def test_needs_two_dimensions() -> None:
    with pytest.raises(ValueError, match="dim"):
        HashingEncoder(dim=1)
