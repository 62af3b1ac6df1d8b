"""Which versions may answer when."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from load.timeline import Timeline

NAME = "sql"


def changed(*changes: tuple[str | None, float, float]) -> Timeline:
    """A timeline that begins empty, with these changes: the new version, when it was sent, when acknowledged."""
    timeline = Timeline({})
    for version, begun, acknowledged in changes:
        timeline.begin(NAME, begun)
        timeline.end(NAME, version, acknowledged)
    return timeline


def test_what_was_there_first_was_always_there() -> None:
    timeline = Timeline({NAME: "v1"})
    assert timeline.possible(NAME, -5, 5) == {"v1"}
    assert timeline.possible("other", 0, 1) == {None}


def test_old_and_new_are_both_right_while_a_change_is_under_way() -> None:
    timeline = changed(("v1", 1, 2), ("v2", 11, 12))
    assert timeline.possible(NAME, 3, 10) == {"v1"}
    assert timeline.possible(NAME, 10, 11.5) == {"v1", "v2"}
    assert timeline.possible(NAME, 11.9, 20) == {"v1", "v2"}
    assert timeline.possible(NAME, 12.1, 20) == {"v2"}


def test_after_a_removal_was_acknowledged_the_expert_is_gone() -> None:
    timeline = changed(("v1", 1, 2), (None, 5, 6))
    assert timeline.possible(NAME, 7, 8) == {None}
    assert timeline.now(NAME) is None
    assert timeline.library() == {}


def test_an_order_that_changed_nothing_leaves_the_state_alone() -> None:
    timeline = changed(("v1", 1, 2), ("v1", 5, 9))
    assert timeline.possible(NAME, 6, 7) == {"v1"}
    assert not timeline.is_disturbed(NAME, 3, 20)


def test_disturbed_while_an_order_is_under_way() -> None:
    timeline = changed(("v1", 1, 2))
    timeline.begin(NAME, 4)
    assert timeline.is_changing(NAME)
    assert timeline.is_disturbed(NAME, 4.5, 4.6)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "b", None]), max_size=8), st.data())
def test_at_every_moment_some_state_holds(versions: list[str | None], data: st.DataObject) -> None:
    timeline = changed(*((version, 10.0 * n, 10.0 * n + 3) for n, version in enumerate(versions)))
    sent = data.draw(st.floats(-20, 100))
    done = sent + data.draw(st.floats(0, 30))
    possible = timeline.possible(NAME, sent, done)
    assert possible
    last = versions[-1] if versions else None
    assert timeline.possible(NAME, 1000, math.inf) == {last}
    state = None
    for number, version in enumerate(versions):
        if 10 * number + 3 <= sent:
            state = version
    assert state in possible, "what was acknowledged before the request was sent"
