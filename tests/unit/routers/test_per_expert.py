"""Means over each expert's nearest rows, against a loop over experts."""

from __future__ import annotations

import numpy as np
import pytest

from routers.per_expert import nearest_mean, nearest_mean_and_rows, places_of


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
    with pytest.raises(ValueError, match="order"):
        places_of(np.array([1, 0], np.int32), 2)
