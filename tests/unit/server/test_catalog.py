"""What a name in ``model`` means while the gateway does not know everything yet."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import FrameType

import pytest

from server.auth import Principal
from server.catalog import MAX_VIEWS, Catalog
from server.errors import ModelNotFound, Unavailable
from tests.support.records import record

ANYBODY = Principal("", frozenset({"infer"}))


@pytest.mark.parametrize("asked", ["sql", "sql@1f3a9c02", "mix(sql*0.5,math*0.5)", "auto", None])
def test_before_the_library_is_read_nobody_says_what_does_not_exist(asked: str | None) -> None:
    with pytest.raises(Unavailable) as caught:
        Catalog(("base",), is_read=False).resolve(asked, ANYBODY)
    assert caught.value.status == 503
    assert caught.value.retry_after_s == 1


def test_the_base_can_be_asked_at_once() -> None:
    assert Catalog(("base",), is_read=False).resolve("base", ANYBODY).kind == "base"


@pytest.mark.parametrize("asked", ["auto", "auto:0.3", None])
def test_a_policy_that_is_not_fitted_yet_is_not_unknown(asked: str | None) -> None:
    catalog = Catalog(("base",), pending=lambda: {"auto"})
    with pytest.raises(Unavailable, match="being fitted"):
        catalog.resolve(asked, ANYBODY)
    with pytest.raises(ModelNotFound):
        catalog.resolve("other", ANYBODY)


def test_a_pending_policy_is_not_shown_to_who_may_not_ask_it() -> None:
    catalog = Catalog(("base",), pending=lambda: {"secret"})
    confined = Principal("k", frozenset({"infer"}), policies=("open*",))
    with pytest.raises(ModelNotFound):
        catalog.resolve("secret", confined)


def catalog_of(*names: str) -> Catalog:
    return Catalog(("base",), experts={each.expert_id: each for each in map(record, names)})


def confined_to(*patterns: str) -> Principal:
    return Principal("k", frozenset({"infer"}), experts=patterns)


def names(ids: frozenset[str] | None) -> set[str]:
    return {each.partition("@")[0] for each in ids or ()}


def test_keys_of_one_gateway_see_what_each_may() -> None:
    catalog = catalog_of("sql", "sql-legacy", "dates")
    for _ in range(2):  # the second time from memory
        assert catalog.visible_to(ANYBODY) is None
        assert names(catalog.visible_to(confined_to("sql*"))) == {"sql", "sql-legacy"}
        assert names(catalog.visible_to(confined_to("dates", "sql"))) == {"sql", "dates"}
        assert catalog.visible_to(confined_to()) == frozenset()


def test_a_changed_library_is_seen_anew() -> None:
    before = catalog_of("sql")
    assert names(before.visible_to(confined_to("*l", "d*"))) == {"sql"}
    after = replace(before, experts=catalog_of("dates").experts)
    assert names(after.visible_to(confined_to("*l", "d*"))) == {"dates"}
    assert names(before.visible_to(confined_to("*l", "d*"))) == {"sql"}


def test_what_keys_see_is_remembered_for_a_bounded_number() -> None:
    catalog = catalog_of("sql")
    for number in range(3 * MAX_VIEWS):
        assert names(catalog.visible_to(confined_to("s*", str(number)))) == {"sql"}
    assert len(catalog._visible) <= MAX_VIEWS


def num_calls(asked: str, catalog: Catalog, principal: Principal) -> int:
    """Function calls, of Python and of C, that it takes to say that there is no such model."""
    num = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal num
        num += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        with pytest.raises(ModelNotFound):
            catalog.resolve(asked, principal)
    finally:
        sys.setprofile(None)
    return num


@pytest.mark.parametrize("form", ["{}", "{}@00000000", "mix({}*0.5,dates*0.5)", "mix({}@00000000*0.5,dates*0.5)"])
def test_it_takes_as_long_to_refuse_what_is_hidden_as_what_does_not_exist(form: str) -> None:
    visible = [*(f"dates{number}" for number in range(200)), "dates"]
    hidden, absent = catalog_of("zebra", *visible), catalog_of("other", *visible)
    asked, sees_dates = form.format("zebra"), confined_to("dates*")
    for catalog in (hidden, absent):  # what is remembered from a first time is
        num_calls(asked, catalog, sees_dates)
    most = num_calls(asked, absent, sees_dates)
    assert most > 500  # the search for similar names is the work
    assert num_calls(asked, hidden, sees_dates) == most
