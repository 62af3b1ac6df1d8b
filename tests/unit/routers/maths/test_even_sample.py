"""A few of many."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from routers.maths.even_sample import evenly_spaced


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_positions_are_distinct_even_and_as_many_as_there_may_be(num: int, most: int) -> None:
    found = evenly_spaced(num, most).tolist()
    assert len(found) == min(num, most)
    assert found == sorted(set(found))
    assert all(0 <= position < num for position in found)
    if len(found) > 1:
        assert (found[0], found[-1]) == (0, num - 1)
        gaps = np.diff(found)
        assert gaps.max() - gaps.min() <= 2


def test_of_what_is_few_enough_nothing_is_left_out() -> None:
    assert evenly_spaced(4, 4).tolist() == evenly_spaced(4, 9).tolist() == [0, 1, 2, 3]
    assert evenly_spaced(5, 3).tolist() == [0, 2, 4]
    assert evenly_spaced(100, 1).tolist() == [0]
