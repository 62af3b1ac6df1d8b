"""Which version a conversation gets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapters_registry.records import AdapterRecord
from adapters_registry.states import AdapterState
from adapters_registry.visibility import EVERYTHING
from server.engine.recipes import parse
from server.planning.catalog import Catalog
from server.planning.conversations import Conversation, ConversationMemory
from server.planning.version_choice import VersionChooser
from tests.support.records import record

OLD, ACTIVE = record("sql", content=1), record("sql", content=2)
DATES = record("dates", content=3)
FIRST, LATER = Conversation(b"c", goes_on=False), Conversation(b"c", goes_on=True)


def canary(share: float) -> AdapterRecord:
    return replace(record("sql", content=4), state=AdapterState.CANARY, share=share)


def catalog_with(*others: AdapterRecord) -> Catalog:
    experts = {each.expert_id: each for each in (ACTIVE, DATES)}
    return Catalog(("base",), experts, {each.expert_id: each for each in others})


def chosen(
    catalog: Catalog,
    conversation: Conversation = FIRST,
    *,
    recipe: str = ACTIVE.expert_id,
    pinned: tuple[str, ...] = (),
    began_on: str | None = None,
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The recipe that a conversation gets, and what is to be remembered; `began_on` is what it had before."""
    memory = ConversationMemory()
    if began_on:
        memory.put(FIRST, "version sql", began_on)
    found, choices = VersionChooser(memory).choose(parse(recipe), pinned, catalog, conversation, EVERYTHING)
    return str(found), choices


def test_without_a_canary_it_is_the_active_version() -> None:
    assert chosen(catalog_with()) == (ACTIVE.expert_id, (("version sql", ACTIVE.expert_id),))


@pytest.mark.parametrize(("share", "is_canary"), [(1.0, True), (0.0, False), (None, False)])
def test_a_canary_gets_its_share(share: float | None, is_canary: bool) -> None:
    version = replace(canary(0.5), share=share)
    wanted = version.expert_id if is_canary else ACTIVE.expert_id
    assert chosen(catalog_with(version)) == (wanted, (("version sql", wanted),))


def test_a_share_is_drawn_once_per_conversation() -> None:
    version = canary(0.25)
    drawn = [chosen(catalog_with(version), Conversation(bytes([i, j]), False))[0] for i in range(40) for j in range(25)]
    assert drawn == [
        chosen(catalog_with(version), Conversation(bytes([i, j]), False))[0] for i in range(40) for j in range(25)
    ]
    assert 190 <= drawn.count(version.expert_id) <= 310  # 250 are expected, 14 is the standard deviation


def test_a_larger_share_keeps_the_conversations_of_a_smaller_one() -> None:
    talks = [Conversation(bytes([i]), False) for i in range(200)]
    small, large = (
        {talk.digest for talk in talks if chosen(catalog_with(canary(share)), talk)[0] == canary(share).expert_id}
        for share in (0.2, 0.6)
    )
    assert small < large


@pytest.mark.parametrize(
    ("state", "stays"),
    [
        (AdapterState.DRAINING, True),
        (AdapterState.CANARY, True),
        (AdapterState.READY, False),
        (None, False),
    ],
)
def test_a_conversation_stays_on_its_version_while_that_serves(state: AdapterState | None, stays: bool) -> None:
    others = () if state is None else (replace(OLD, state=state),)
    wanted = OLD.expert_id if stays else ACTIVE.expert_id
    assert chosen(catalog_with(*others), LATER, began_on=OLD.expert_id)[0] == wanted


def test_a_new_conversation_does_not_begin_on_a_draining_version() -> None:
    draining = replace(OLD, state=AdapterState.DRAINING)
    assert chosen(catalog_with(draining), FIRST, began_on=OLD.expert_id)[0] == ACTIVE.expert_id


def test_what_was_remembered_of_another_expert_is_not_taken() -> None:
    assert chosen(catalog_with(), LATER, began_on=DATES.expert_id)[0] == ACTIVE.expert_id


def test_a_pinned_version_is_kept() -> None:
    version = canary(1.0)
    pinned = (ACTIVE.expert_id,)
    assert chosen(catalog_with(version), pinned=pinned) == (ACTIVE.expert_id, ())


def test_every_expert_of_a_mix_gets_its_version() -> None:
    version = canary(1.0)
    mix = f"mix({DATES.expert_id}*0.5,{ACTIVE.expert_id}*0.5)"
    found, choices = chosen(catalog_with(version), recipe=mix)
    assert found == f"mix({DATES.expert_id}*0.5,{version.expert_id}*0.5)"
    assert dict(choices) == {"version dates": DATES.expert_id, "version sql": version.expert_id}
