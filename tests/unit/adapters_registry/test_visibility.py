"""What keys see: a reference in sets, over random keys and experts."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters_registry.visibility import EVERYBODY, EVERYTHING, Audience, Sight

TAGS, TENANTS = st.sampled_from("xyz"), st.sampled_from(["", "a", "b"])
NAMES = st.sampled_from(["sql", "sql-old", "dates"])
PATTERNS = st.lists(st.sampled_from(["*", "sql*", "dates", "[a-d]*"]), max_size=2).map(tuple)
SIGHTS = st.builds(Sight, PATTERNS, PATTERNS, st.lists(TAGS, max_size=2).map(tuple), TENANTS)
AUDIENCES = st.builds(Audience, st.frozensets(TAGS, max_size=2), TENANTS)


@given(SIGHTS, NAMES, AUDIENCES)
def test_every_bound_has_to_be_met(sight: Sight, name: str, audience: Audience) -> None:
    by_tenant = sight.tenant == "" or audience.tenant in ("", sight.tenant)
    by_expert = any(fnmatch.fnmatchcase(name, each) for each in sight.experts)
    by_policy = any(fnmatch.fnmatchcase(name, each) for each in sight.policies)
    has_tag = bool(set(sight.tags) & audience.tags)
    assert sight.sees_expert(name, audience) == (by_tenant and by_expert and (has_tag or not sight.tags))
    assert sight.sees_policy(name, audience) == (
        by_tenant and by_policy and (has_tag or not sight.tags or not audience.tags)
    )


@given(SIGHTS, NAMES, AUDIENCES)
def test_who_sees_the_whole_misses_nothing(sight: Sight, name: str, audience: Audience) -> None:
    if sight.is_whole:
        assert sight.sees_expert(name, audience)


@pytest.mark.parametrize(
    ("sight", "whole"),
    [(EVERYTHING, True), (Sight(tags=("x",)), False), (Sight(tenant="a"), False), (Sight(experts=("sql",)), False)],
)
def test_any_bound_hides_something(sight: Sight, whole: bool) -> None:
    assert sight.is_whole == whole
    assert sight.sees_policy("auto", EVERYBODY)
