from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from adapters_registry.states import OFFERED, TRANSITIONS, AdapterState, may_become


def test_every_state_has_transitions_and_none_leads_to_itself() -> None:
    assert set(TRANSITIONS) == set(AdapterState)
    assert all(state not in followers for state, followers in TRANSITIONS.items())


def test_every_state_can_be_reached_and_left() -> None:
    reached = {AdapterState.REGISTERED}
    while more := {after for state in reached for after in TRANSITIONS[state]} - reached:
        reached |= more
    assert reached == set(AdapterState)
    assert all(TRANSITIONS.values())


@given(st.lists(st.sampled_from(AdapterState), max_size=30))
def test_nothing_is_offered_that_was_not_ready_first(wanted: list[AdapterState]) -> None:
    state, was_ready = AdapterState.REGISTERED, False
    for after in wanted:
        if not may_become(state, after):
            continue
        if state in (AdapterState.REGISTERED, AdapterState.VALIDATING) and after is not AdapterState.READY:
            assert after not in OFFERED
        if after is AdapterState.REJECTED:
            assert state in (AdapterState.REGISTERED, AdapterState.VALIDATING)
        state, was_ready = after, was_ready or after is AdapterState.READY
        if state in OFFERED:
            assert was_ready
