"""The book of policies: definitions from settings and disk, states, and what each policy lacks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from adapters_registry.visibility import Audience
from routers.embedders.batching import BatchingEmbedder
from routers.errors import UnknownRouter
from routers.library.subset_config import SubsetConfig
from routers.methods.baselines import BaselineConfig, BaseRouter
from server.errors import BadRequest, NotFound
from server.policies.book import Attempt, Cancelled, Entry, Failed, Fitted, Fitting, PolicyBook, Waiting
from server.policies.definitions import PolicySpec
from server.policies.live import LivePolicy
from server.settings import PolicySettings
from tests.support.policies import definitions

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


class Today:
    """Date and time that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


def spec(name: str, router: str = "base", **settings: object) -> PolicySpec:
    return PolicySpec(name, PolicySettings.model_validate({"router": router, **settings}), origin="admin")


def book(root: Path, *specs: PolicySpec, today: Today | None = None) -> PolicyBook:
    return PolicyBook(specs or [spec("auto")], definitions(root), now=today or Today())


def live(embedder: BatchingEmbedder, *known_ids: str, stale: bool = False, of: PolicySpec | None = None) -> LivePolicy:
    ids = frozenset(known_ids)
    router = BaseRouter(BaselineConfig(), [])
    return LivePolicy("auto", "base", router, "v1", embedder, ids, ids, stale=stale, spec=of)


# -- entries ------------------------------------------------------------------------------------------------------


def test_an_entry_takes_its_embedder_from_the_settings_or_the_method() -> None:
    assert Entry.of(spec("a", "knn")).embedder == ""
    assert Entry.of(spec("a", "knn", embedder="small")).embedder == "small"
    assert Entry.of(spec("a", "twin_merging")).embedder == "base"
    with pytest.raises(UnknownRouter, match="knn"):
        Entry.of(spec("a", "knm"))


def test_an_entry_reads_scores_for_its_method_or_its_subset() -> None:
    assert not Entry.of(spec("a", "knn")).reads_scores
    assert Entry.of(spec("a", "best_single")).reads_scores
    assert Entry.of(spec("a", "knn", subset=SubsetConfig(method="cluster", size=2))).reads_scores


def test_an_artefact_depends_on_options_and_subset() -> None:
    plain = Entry.of(spec("a", "knn")).artefact_config
    assert plain["subset"] is None
    assert Entry.of(spec("b", "knn", tenant="bank")).artefact_config == plain
    for other in ({"options": {"threshold": 0.9}}, {"subset": {"method": "cluster", "size": 2}}):
        assert Entry.of(spec("a", "knn", **other)).artefact_config != plain


@pytest.mark.parametrize(
    ("attempt", "error"),
    [
        (Waiting(), ""),
        (Fitting(2), ""),
        (Fitted(), ""),
        (Failed("disk full", 1, 3.0, "v1"), "disk full"),
        (Cancelled(), "cancelled"),
    ],
)
def test_an_error_lasts_until_the_next_attempt(attempt: Attempt, error: str) -> None:
    entry = Entry.of(spec("a"))
    entry.attempt = attempt
    assert entry.error == error


def test_an_error_is_still_shown_when_no_retry_is_planned() -> None:
    entry = Entry.of(spec("a"))
    entry.attempt = Failed("disk full", 2, 3.0, "v1")
    entry.stop_retrying()
    assert entry.attempt == Failed("disk full", 2, None, "v1")
    entry.attempt = Cancelled()
    entry.stop_retrying()
    assert entry.attempt == Cancelled()


# -- states -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attempt", "state"),
    [
        (Waiting(), "fitting"),
        (Fitting(), "fitting"),
        (Failed("disk full", 1, 3.0, "v1"), "failed"),
        (Failed("disk full", 1, None, "v1"), "failed"),
        (Cancelled(), "cancelled"),
    ],
)
def test_the_state_of_a_policy_that_cannot_decide_is_that_of_its_fit(
    tmp_path: Path, attempt: Attempt, state: str
) -> None:
    opened = book(tmp_path)
    opened.get("auto").attempt = attempt
    shown = opened.describe(opened.get("auto"))
    assert (shown["state"], shown["num_experts"], shown["provenance"]) == (state, None, None)


@pytest.mark.parametrize(
    ("known", "stale", "state", "num_missing"),
    [
        (("sql", "dates"), False, "ready", 0),
        (("sql", "dates", "removed"), False, "ready", 0),
        (("sql",), False, "following", 1),
        ((), False, "following", 2),
        (("sql",), True, "stale", 1),
        (("sql", "dates"), True, "stale", 0),
    ],
)
@pytest.mark.parametrize("attempt", [Fitted(), Fitting(), Failed("no", 1, 3.0, "v1"), Cancelled()])
def test_the_state_of_a_policy_that_decides_is_what_it_knows(
    tmp_path: Path,
    embedder: BatchingEmbedder,
    known: tuple[str, ...],
    stale: bool,
    state: str,
    num_missing: int,
    attempt: Attempt,
) -> None:
    opened = book(tmp_path)
    entry = opened.get("auto")
    entry.live, entry.attempt = live(embedder, *known, stale=stale), attempt
    opened.note_library(["sql", "dates"])
    shown = opened.describe(entry)
    assert (shown["state"], shown["num_missing_experts"]) == (state, num_missing)
    assert shown["num_experts"] == len(known)
    assert shown["behind_since"] == ("2026-01-02T12:00:00+00:00" if num_missing else None)
    assert shown["error"] == (entry.error or None)


def test_a_policy_is_behind_since_it_first_lacked_an_expert(tmp_path: Path, embedder: BatchingEmbedder) -> None:
    today = Today()
    opened = book(tmp_path, today=today)
    entry = opened.get("auto")
    entry.live = live(embedder, "sql")
    opened.note_library(["sql"])
    assert entry.behind_since is None
    today.now += timedelta(minutes=1)
    opened.note_library(["sql", "dates"])
    today.now += timedelta(minutes=1)
    opened.note_library(["sql", "dates", "poems"])
    assert (opened.num_missing(entry), entry.behind_since) == (2, NOON + timedelta(minutes=1))
    entry.live = live(embedder, "sql", "dates")
    opened.update_lag()
    assert (opened.num_missing(entry), entry.behind_since) == (1, NOON + timedelta(minutes=1))
    entry.live = live(embedder, "sql", "dates", "poems")
    opened.update_lag()
    assert (opened.num_missing(entry), entry.behind_since) == (0, None)


def test_policies_of_the_settings_are_missing_until_they_decide(tmp_path: Path, embedder: BatchingEmbedder) -> None:
    opened = book(tmp_path, spec("auto"), spec("best"))
    opened.get("best").attempt = Failed("no scores", 1, 3.0, "v1")
    assert opened.missing == {"auto": "not fitted yet", "best": "no scores"}
    assert opened.pending == {"auto": Audience(), "best": Audience()}
    opened.get("auto").live = live(embedder)
    assert opened.missing == {"best": "no scores"}
    assert list(opened.live) == ["auto"]


def test_a_policy_decides_for_its_present_audience(tmp_path: Path, embedder: BatchingEmbedder) -> None:
    opened = book(tmp_path, spec("auto", tenant="bank"))
    opened.get("auto").live = live(embedder)
    assert opened.live["auto"].audience == Audience(tenant="bank")


# -- definitions --------------------------------------------------------------------------------------------------


async def test_definitions_of_another_gateway_are_read_once(tmp_path: Path) -> None:
    opened = book(tmp_path)
    await opened.read_stored()
    assert not await opened.has_unread()
    definitions(tmp_path).save(spec("mine"))
    definitions(tmp_path).save(spec("auto", "knn"))  # the settings win
    assert await opened.has_unread()
    await opened.read_stored()
    assert {each.spec.name: each.spec.settings.router for each in opened.entries} == {"auto": "base", "mine": "base"}
    kept = opened.get("mine")
    await opened.read_stored()
    assert opened.get("mine") is kept
    definitions(tmp_path).remove("mine")
    assert await opened.has_unread()
    await opened.read_stored()
    assert [each.spec.name for each in opened.entries] == ["auto"]
    assert not opened.is_current(kept)


async def test_a_stored_definition_that_cannot_be_used_is_left_out(tmp_path: Path) -> None:
    definitions(tmp_path).save(spec("bad", "knm"))
    definitions(tmp_path).save(spec("good"))
    opened = book(tmp_path)
    await opened.read_stored()
    assert [each.spec.name for each in opened.entries] == ["auto", "good"]


async def test_a_redefined_policy_serves_as_before_until_it_is_fitted(
    tmp_path: Path, embedder: BatchingEmbedder
) -> None:
    opened = book(tmp_path)
    first = Entry.of(spec("mine"))
    await opened.define(first)
    opened.note_library(["sql"])
    first.live = live(embedder)
    second = Entry.of(spec("mine", "knn"))
    await opened.define(second)
    assert opened.is_current(second)
    assert not opened.is_current(first)
    assert (second.live, second.behind_since) == (first.live, NOON)
    assert [each.name for each in definitions(tmp_path).load()] == ["mine"]


async def test_policies_of_the_settings_are_neither_redefined_nor_removed(tmp_path: Path) -> None:
    opened = book(tmp_path)
    with pytest.raises(BadRequest, match="settings"):
        opened.refuse_settings("auto")
    with pytest.raises(BadRequest, match="settings"):
        await opened.remove("auto")
    with pytest.raises(NotFound, match="none"):
        await opened.remove("none")
    await opened.define(Entry.of(spec("mine")))
    await opened.remove("mine")
    assert not definitions(tmp_path).load()
    with pytest.raises(NotFound):
        opened.get("mine")
