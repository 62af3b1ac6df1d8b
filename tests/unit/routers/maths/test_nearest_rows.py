"""Means over each expert's nearest rows, against a loop over experts."""

from __future__ import annotations

import numpy as np
import pytest

from routers.maths import nearest_rows
from routers.maths.nearest_rows import nearest_mean, nearest_mean_and_rows, nearest_own, places_of


@pytest.mark.parametrize("seed", range(20))
def test_means_are_those_of_each_expert_by_itself(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_experts, num_rows, num = int(rng.integers(1, 8)), int(rng.integers(0, 30)), int(rng.integers(1, 5))
    owner = np.sort(rng.integers(0, num_experts, num_rows)).astype(np.int32)
    cosines = rng.normal(size=(3, num_rows)).astype(np.float32)
    means = nearest_mean(cosines, places_of(owner, num_experts), num)
    same, rows = nearest_mean_and_rows(cosines, places_of(owner, num_experts), num)
    np.testing.assert_array_equal(np.isnan(means), np.isnan(same))
    for prompt in range(3):
        for expert in range(num_experts):
            best = np.sort(cosines[prompt, owner == expert].astype(np.float64))[::-1][:num]
            found = rows[prompt, expert][rows[prompt, expert] >= 0]
            assert np.sort(cosines[prompt, found].astype(np.float64))[::-1].tolist() == best.tolist()
            if len(best):
                assert means[prompt, expert] == pytest.approx(best.mean(), abs=1e-9)
                assert same[prompt, expert] == pytest.approx(best.mean(), abs=1e-9)
            else:
                assert np.isnan(means[prompt, expert])


def test_rows_must_lie_by_expert() -> None:
    with pytest.raises(ValueError, match="sorted"):
        places_of(np.array([1, 0], np.int32), 2)


@pytest.mark.parametrize("max_cosines", [4, 90, 10_000])
def test_nearest_own_is_that_of_each_row_by_itself(max_cosines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest_rows, "MAX_COSINES", max_cosines)
    rng = np.random.default_rng(max_cosines)
    owner = rng.permutation(np.repeat(np.arange(8), [1, 2, 3, 3, 4, 11, 11, 0])).astype(np.int32)
    asked, among = rng.normal(size=(2, len(owner), 6)).astype(np.float32)
    found = nearest_own(asked, among, owner, 3)
    expected = np.full(len(owner), np.nan)
    for row, expert in enumerate(owner.tolist()):
        others = [float(asked[row] @ among[other]) for other in np.flatnonzero(owner == expert) if other != row]
        if others:
            expected[row] = np.mean(sorted(others)[-3:])
    expected[np.isnan(expected)] = np.nanmedian(expected)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_rows_of_their_own_have_nothing_near() -> None:
    rows = np.eye(3, dtype=np.float32)
    assert nearest_own(rows, rows, np.arange(3, dtype=np.int32), 3).tolist() == [0, 0, 0]
    nothing = np.zeros((0, 3), np.float32)
    assert not len(nearest_own(nothing, nothing, np.zeros(0, np.int32), 3))
