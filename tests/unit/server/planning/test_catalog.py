"""What a name in ``model`` means while the gateway does not know everything yet."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest

from adapters_registry.records import AdapterRecord, Card, Composition
from adapters_registry.states import AdapterState
from adapters_registry.visibility import EVERYBODY, Sight
from server.access.auth import Principal
from server.engine.recipes import Single
from server.errors import ModelNotFound, Unavailable
from server.planning.catalog import MAX_VIEWS, Catalog
from server.planning.conversations import Conversation, ConversationMemory
from server.planning.version_choice import VersionChooser
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
    catalog = Catalog(("base",), pending=lambda: {"auto": EVERYBODY})
    with pytest.raises(Unavailable, match="being fitted"):
        catalog.resolve(asked, ANYBODY)
    with pytest.raises(ModelNotFound):
        catalog.resolve("other", ANYBODY)


def test_a_pending_policy_is_not_shown_to_who_may_not_ask_it() -> None:
    catalog = Catalog(("base",), pending=lambda: {"secret": EVERYBODY})
    confined = Principal("k", frozenset({"infer"}), Sight(policies=("open*",)))
    with pytest.raises(ModelNotFound):
        catalog.resolve("secret", confined)


def catalog_of(*names: str) -> Catalog:
    return Catalog(("base",), experts={each.expert_id: each for each in map(record, names)})


def confined_to(*patterns: str) -> Principal:
    return Principal("k", frozenset({"infer"}), Sight(experts=patterns))


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
    assert len(catalog._views) <= MAX_VIEWS


def for_tenant(name: str, tenant: str, *tags: str, content: int = 0) -> AdapterRecord:
    return replace(record(name, content=content), card=Card(tags=list(tags), tenant=tenant))


def seeing(**bounds: Any) -> Principal:
    return Principal("k", frozenset({"infer"}), Sight(**bounds))


def test_keys_are_confined_by_tags_and_tenants_too() -> None:
    library = [
        for_tenant("sql", "", "data"),
        for_tenant("dates", "", "text"),
        for_tenant("ledger", "bank", "data"),
        for_tenant("claims", "insurer", "text"),
    ]
    catalog = Catalog(("base",), experts={each.expert_id: each for each in library})
    assert catalog.visible_to(seeing()) is None
    assert names(catalog.visible_to(seeing(tags=("data",)))) == {"sql", "ledger"}
    assert names(catalog.visible_to(seeing(tenant="bank"))) == {"sql", "dates", "ledger"}
    assert names(catalog.visible_to(seeing(tenant="bank", tags=("text",)))) == {"dates"}
    assert names(catalog.visible_to(seeing(tenant="bank", experts=("l*", "c*")))) == {"ledger"}
    bank = seeing(tenant="bank")
    assert catalog.resolve("ledger", bank).kind == "expert"
    for asked in ("claims", "claims@00000000", "mix(ledger*0.5,claims*0.5)"):
        with pytest.raises(ModelNotFound):
            catalog.resolve(asked, bank)
    assert {entry["id"] for entry in catalog.listing(bank)} == {"base", "sql", "dates", "ledger"}


def test_a_version_is_for_whom_it_and_the_active_one_are() -> None:
    active = for_tenant("ledger", "bank")
    canary = replace(for_tenant("ledger", "", content=1), state=AdapterState.CANARY, share=0.5)
    ready = replace(for_tenant("new", "bank", content=2), state=AdapterState.READY)
    catalog = Catalog(("base",), {active.expert_id: active}, {each.expert_id: each for each in (canary, ready)})
    for asked in (canary.expert_id, ready.expert_id):
        assert catalog.resolve(asked, seeing(tenant="bank")).pinned == {asked}
        with pytest.raises(ModelNotFound):
            catalog.resolve(asked, seeing(tenant="insurer"))


def test_a_canary_for_one_tenant_is_not_served_to_others() -> None:
    active = for_tenant("ledger", "")
    canary = replace(for_tenant("ledger", "bank", content=1), state=AdapterState.CANARY, share=1.0)
    catalog = Catalog(("base",), {active.expert_id: active}, {canary.expert_id: canary})
    memory, conversation = ConversationMemory(), Conversation(b"c", goes_on=False)
    for tenant, gets in (("bank", canary), ("insurer", active)):
        sight = Sight(tenant=tenant)
        recipe, _ = VersionChooser(memory).choose(Single(active.expert_id), (), catalog, conversation, sight)
        assert recipe == Single(gets.expert_id)
    with pytest.raises(ModelNotFound):
        catalog.resolve(canary.expert_id, seeing(tenant="insurer"))


def test_a_set_with_a_hidden_expert_is_as_unknown_as_any() -> None:
    library = [for_tenant("ledger", "bank"), for_tenant("claims", "insurer")]
    text = "mix(claims@00000000*0.5,ledger@00000000*0.5)"
    texts = {"a" * 16: text}
    catalog = Catalog(("base",), {each.expert_id: each for each in library}, text_of=texts.get)
    assert catalog.resolve("set:" + "a" * 16, seeing()).kind == "recipe"
    refusals = []
    for digest in ("a" * 16, "b" * 16):
        with pytest.raises(ModelNotFound) as caught:
            catalog.resolve(f"set:{digest}", seeing(tenant="bank"))
        refusals.append(caught.value.message.replace(digest, ""))
    assert refusals[0] == refusals[1]


def test_every_name_that_can_be_asked_has_an_entry() -> None:
    active, ready = record("sql"), replace(record("sql", content=1), state=AdapterState.READY)
    catalog = Catalog(("base",), {active.expert_id: active}, {ready.expert_id: ready})
    for asked, kind, name in (
        ("base", "base", "base"),
        ("sql", "expert", "sql"),
        (active.expert_id, "expert", "sql"),
        (ready.expert_id, "expert", ready.expert_id),
        ("mix(sql*0.5)", "recipe", "mix(sql*0.5)"),
    ):
        entry = catalog.entry(asked, ANYBODY)
        assert (entry["kind"], entry["id"]) == (kind, name)
    with pytest.raises(ModelNotFound):
        catalog.entry("dates", ANYBODY)


def test_a_merge_names_its_parts_only_to_who_sees_everything() -> None:
    made = Composition(recipe="mix(sql@00000000*0.5,secret@00000000*0.5)", method="exact")
    both = replace(record("both"), card=Card(composed_from=made))
    catalog = Catalog(("base",), {both.expert_id: both})
    assert "secret" in str(catalog.listing(seeing()))
    for bounds in ({"experts": ("both",)}, {"tenant": "bank"}):
        assert [each["id"] for each in catalog.listing(seeing(**bounds))] == ["base", "both"]
        assert "secret" not in str(catalog.listing(seeing(**bounds)))


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
@pytest.mark.parametrize("bounds", [{"experts": ("dates*",)}, {"tags": ("open",)}, {"tenant": "bank"}], ids=str)
def test_it_takes_as_long_to_refuse_what_is_hidden_as_what_does_not_exist(form: str, bounds: dict[str, Any]) -> None:
    visible = [for_tenant(name, "bank", "open") for name in ["dates", *(f"dates{number}" for number in range(200))]]
    hidden, absent = (
        Catalog(("base",), {each.expert_id: each for each in [for_tenant(name, "insurer", "closed"), *visible]})
        for name in ("zebra", "other")
    )
    asked, confined = form.format("zebra"), seeing(**bounds)
    for catalog in (hidden, absent):  # what is remembered from a first time is
        num_calls(asked, catalog, confined)
    most = num_calls(asked, absent, confined)
    assert most > 500  # the search for similar names is the work
    assert num_calls(asked, hidden, confined) == most
