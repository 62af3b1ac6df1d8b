"""Policies follow the library: when each is fitted, retried, left stale, or waits, and what it lacks until then."""

import asyncio
import errno
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from routers.artefacts import ArtefactStore
from routers.base import Artefact, FitData, Matrix, Progress, RouteQuery
from routers.embedders.batching import BatchingEmbedder
from routers.embedders.hashing import HashingEncoder
from routers.library.subset_config import SubsetConfig
from routers.methods.classifier import ClassifierRouter
from routers.methods.knn import KnnConfig, KnnRouter
from server.policies.definitions import PolicySpec
from server.policies.follower import FIRST_RETRY_S, LAST_RETRY_S
from server.policies.scores import Figures, ScoreRow
from server.settings import PolicySettings
from server.telemetry.metrics import Metrics
from tests.support.policies import WAIT_S, Clock, definitions, ended, manager, policy_gauge, scores
from tests.support.records import record
from tests.support.waiting import eventually


async def test_a_fit_that_fails_keeps_the_old_router(
    tmp_path: Path, embedder: BatchingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.policies.follower.FIRST_RETRY_S", 100.0)
    clock, metrics = Clock(), Metrics(max_experts=3, prices={})
    policies = manager(tmp_path, embedder, metrics=metrics, clock=clock)
    before = (await policies.refresh([record("sql", "list all orders")]))["auto"]

    def fail(*_: object) -> None:
        raise RuntimeError("no")

    with monkeypatch.context() as patch:
        patch.setattr(KnnRouter, "fit", fail)
        kept = (await policies.refresh([record("dates", "convert to ISO")]))["auto"]
    assert kept is before
    assert (await policies.refresh([record("dates", "convert to ISO")]))["auto"] is before  # not at once again
    clock.now += 1000
    assert policy_gauge(metrics, "stale") == 1
    after = (await policies.refresh([record("dates", "convert to ISO")]))["auto"]
    assert after.expert_ids == {"dates@00000000"}
    assert policy_gauge(metrics, "stale") == 0


async def test_a_costly_policy_goes_stale_and_is_fitted_on_demand(tmp_path: Path, embedder: BatchingEmbedder) -> None:
    metrics = Metrics(max_experts=3, prices={})
    policies = manager(tmp_path, embedder, "classifier", metrics=metrics)
    first = [record("sql", "list all orders"), record("dates", "convert to ISO")]
    assert "auto" not in await policies.refresh(first)  # a job fits it, and nobody else waits for that
    (job,) = policies.jobs.all()
    assert (await ended(job)).state == "succeeded"
    assert not (await policies.refresh(first))["auto"].stale
    grown = [*first, record("poems", "write a sonnet")]
    stale = (await policies.refresh(grown))["auto"]
    assert stale.stale
    assert len(stale.expert_ids) == 2
    assert policies.describe_one("auto")["state"] == "stale"
    reopened = (await manager(tmp_path, embedder, "classifier").refresh(grown))["auto"]
    assert reopened.stale
    assert (await ended(policies.refit("auto"))).state == "succeeded"
    shown = policies.describe_one("auto")
    assert (shown["state"], shown["num_experts"]) == ("ready", 3)
    assert policy_gauge(metrics, "stale") == 0


async def test_scores_make_policies_that_learn_from_them(tmp_path: Path, embedder: BatchingEmbedder) -> None:
    records = [record("sql", "list all orders"), record("dates", "convert to ISO")]
    policies = manager(tmp_path, embedder)
    await policies.refresh(records)
    figures = {"base": Figures(score=0), "sql@00000000": Figures(score=1), "dates@00000000": Figures(score=0.5)}
    scores(tmp_path).report([ScoreRow(task="sql", prompt="list orders", answer="x", models=figures)])
    job = await policies.create(PolicySpec("best", PolicySettings(router="best_single"), origin="admin"))
    assert (await ended(job)).state == "succeeded", job.error
    (chosen,) = policies.live["best"].router.route(RouteQuery("anything")).experts
    assert chosen.expert_id == "sql@00000000"
    again = (await manager(tmp_path, embedder).refresh(records))["best"]
    assert again.version == policies.live["best"].version
    await policies.refresh(records)
    assert not await policies.wants_refresh()
    scores(tmp_path).report([ScoreRow(task="t", prompt="p", answer="x", models={"base": Figures(score=1)})])
    assert await policies.wants_refresh()
    assert (await policies.refresh(records))["best"].version != again.version
    await policies.refresh(records)  # its own fit is news once, and no more
    assert not await policies.wants_refresh()


async def test_a_slow_embedder_holds_up_only_its_own_policies(
    tmp_path: Path, embedder: BatchingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = threading.Event()

    class Slow(HashingEncoder):
        def encode(self, texts: Sequence[str]) -> Matrix:
            free.wait()
            return super().encode(texts)

    policies = manager(tmp_path, embedder, open_encoder=lambda name: Slow(16))
    await policies.refresh([record("sql", "list all orders")])
    slow = await policies.create(PolicySpec("slow", PolicySettings(router="knn", embedder="slow"), origin="admin"))
    quick = await policies.create(PolicySpec("quick", PolicySettings(router="centroid"), origin="admin"))
    assert (await ended(quick)).state == "succeeded"
    grown = [record("sql", "list all orders"), record("dates", "convert to ISO")]
    live = await asyncio.wait_for(policies.refresh(grown), WAIT_S)
    assert len(live["auto"].expert_ids) == len(live["quick"].expert_ids) == 2
    assert "slow" not in live
    free.set()
    assert (await ended(slow)).state == "succeeded"
    assert await policies.wants_refresh()
    await policies.refresh(grown)
    await eventually(lambda: len(policies.live["slow"].expert_ids) == 2)
    await policies.close()


async def test_examples_are_embedded_once_also_over_a_restart(tmp_path: Path) -> None:
    class Counting(HashingEncoder):
        def encode(self, texts: Sequence[str]) -> Matrix:
            seen.extend(texts)
            return super().encode(texts)

    seen: list[str] = []
    for grown in (["list all orders"], ["list all orders", "count the customers"]):
        embedder = BatchingEmbedder(Counting())
        policies = manager(tmp_path, embedder)
        await policies.refresh([record("sql", *grown), record("dates", "convert to ISO")])
        await embedder.close()
    assert len(seen) == len(set(seen)) == 3


async def test_a_policy_that_follows_is_told_of_its_router_in_service(
    tmp_path: Path, embedder: BatchingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    fit = KnnRouter.fit

    def spied(config: KnnConfig, data: FitData, progress: Progress) -> Artefact:
        told.append(data.previous)
        return fit(config, data, progress)

    monkeypatch.setattr(KnnRouter, "fit", spied)
    policies = manager(tmp_path, embedder)
    first = (await policies.refresh([record("sql", "list all orders")]))["auto"].router
    await policies.refresh([record("sql", "list all orders"), record("dates", "convert to ISO")])
    await ended(policies.refit("auto"))
    assert told == [None, first, None]


async def test_a_policy_that_follows_does_not_read_the_artefact_that_it_replaces(
    tmp_path: Path, embedder: BatchingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = manager(tmp_path, embedder)
    await policies.refresh([record("sql", "list all orders")])
    read: list[str] = []
    current = ArtefactStore.current

    def spied(store: ArtefactStore, policy: str) -> Artefact | None:
        read.append(policy)
        return current(store, policy)

    monkeypatch.setattr(ArtefactStore, "current", spied)
    grown = [record("sql", "list all orders"), record("dates", "convert to ISO")]
    live = (await policies.refresh(grown))["auto"]
    assert len(live.expert_ids) == 2
    assert read == []


async def test_a_router_of_another_embedder_is_no_predecessor(
    tmp_path: Path, embedder: BatchingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, object]] = []
    fit = KnnRouter.fit

    def spied(config: KnnConfig, data: FitData, progress: Progress) -> Artefact:
        told.append((data.embedder, data.previous))
        return fit(config, data, progress)

    policies = manager(tmp_path, embedder)
    records = [record("sql", "list all orders")]
    await ended(await policies.create(PolicySpec("mine", PolicySettings(router="knn"), origin="admin")))
    await policies.refresh(records)
    monkeypatch.setattr(KnnRouter, "fit", spied)
    redefined = PolicySpec("mine", PolicySettings(router="knn", embedder="hashing-16"), origin="admin")
    definitions(tmp_path).save(redefined)  # as another gateway does
    await policies.refresh(records)
    await eventually(lambda: policies.live["mine"].embedder.dim == 16)
    assert told == [("hashing-16", None)]


async def test_each_policy_is_shown_as_soon_as_it_is_fitted(tmp_path: Path, embedder: BatchingEmbedder) -> None:
    policies = manager(tmp_path, embedder)
    await policies.create(PolicySpec("second", PolicySettings(router="centroid"), origin="admin"))
    await policies.refresh([record("sql", "list all orders")])
    await ended(policies.jobs.all()[0])
    shown: list[dict[str, int]] = []
    policies.on_change = lambda live: shown.append({name: len(each.expert_ids) for name, each in live.items()})
    await policies.refresh([record("sql", "list all orders"), record("dates", "convert to ISO")])
    assert {"auto": 2, "second": 1} in shown
    assert shown[-1] == {"auto": 2, "second": 2}


async def test_a_long_fit_holds_up_no_other_policy(
    tmp_path: Path, embedder: BatchingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = threading.Event()
    fit = ClassifierRouter.fit

    def slowly(config: Any, data: FitData, progress: Progress) -> Artefact:
        free.wait()
        return fit(config, data, progress)

    monkeypatch.setattr(ClassifierRouter, "fit", slowly)
    policies = manager(tmp_path, embedder)
    first = [record("sql", "list all orders"), record("dates", "convert to ISO")]
    await policies.refresh(first)
    job = await policies.create(PolicySpec("slow", PolicySettings(router="classifier"), origin="admin"))
    grown = [*first, record("poems", "write a sonnet")]
    live = await asyncio.wait_for(policies.refresh(grown), WAIT_S)
    assert len(live["auto"].expert_ids) == 3
    assert "slow" not in live
    free.set()
    assert (await ended(job)).state == "succeeded"
    assert await policies.wants_refresh()
    assert (await policies.refresh(grown))["slow"].stale  # it was fitted to the library of before


async def test_a_policy_that_another_gateway_fits_is_taken_up_when_it_is_ready(
    tmp_path: Path, embedder: BatchingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.policies.follower.FOLLOW_WAIT_S", 0.05)
    records = [record("sql", "list all orders")]
    one, other = manager(tmp_path, embedder), manager(tmp_path, embedder)
    async with definitions(tmp_path).alone("auto"):
        assert not await other.refresh(records)
        assert await other.wants_refresh()
    made = (await one.refresh(records))["auto"]

    def refuse(*_: object) -> None:
        raise AssertionError("fitted twice")

    monkeypatch.setattr(KnnRouter, "fit", refuse)
    taken = (await other.refresh(records))["auto"]
    assert taken.provenance == made.provenance


async def test_a_live_policy_whose_fit_failed_is_tried_again(
    tmp_path: Path, embedder: BatchingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, metrics = Clock(), Metrics(max_experts=3, prices={})
    policies = manager(tmp_path, embedder, metrics=metrics, clock=clock)
    await policies.refresh([record("sql", "list all orders")])
    grown = [record("sql", "list all orders"), record("dates", "convert to ISO")]

    with monkeypatch.context() as patch:
        patch.setattr(ArtefactStore, "publish", full_disk)
        assert len((await policies.refresh(grown))["auto"].expert_ids) == 1
    assert not await policies.wants_refresh()
    clock.now += 1000
    assert await policies.wants_refresh()
    assert len((await policies.refresh(grown))["auto"].expert_ids) == 2
    await policies.refresh(grown)
    assert not await policies.wants_refresh()


async def test_what_is_as_fitted_again_is_no_longer_stale(tmp_path: Path, embedder: BatchingEmbedder) -> None:
    metrics = Metrics(max_experts=3, prices={})
    policies = manager(tmp_path, embedder, "classifier", metrics=metrics)
    first = [record("sql", "list all orders"), record("dates", "convert to ISO")]
    await policies.refresh(first)
    (job,) = policies.jobs.all()
    await ended(job)
    assert (await policies.refresh([*first, record("poems", "write a sonnet")]))["auto"].stale
    assert not (await policies.refresh(first))["auto"].stale
    assert policy_gauge(metrics, "stale") == 0


async def test_gateways_on_one_home_report_to_one_table_of_scores(tmp_path: Path, embedder: BatchingEmbedder) -> None:
    one = manager(tmp_path, embedder)
    await one.refresh([])
    await one.refresh([])
    for prompt in ("first", "second"):
        row = ScoreRow(prompt=prompt, answer="x", models={"base": Figures(score=1)})
        scores(tmp_path).report([row])
    assert await one.wants_refresh()
    assert {sample.prompt for sample in scores(tmp_path).samples()} == {"first", "second"}


async def test_a_policy_says_what_it_lacks_until_it_is_fitted_to_it(
    tmp_path: Path, embedder: BatchingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics(max_experts=3, prices={})
    policies = manager(tmp_path, embedder, metrics=metrics)
    assert policies.describe_one("auto")["state"] == "fitting"
    first = [record("sql", "list all orders")]
    await policies.refresh(first)
    shown = policies.describe_one("auto")
    assert (shown["state"], shown["num_missing_experts"], shown["behind_since"]) == ("ready", 0, None)
    grown = [*first, record("dates", "convert to ISO"), record("poems", "write a sonnet")]

    policies.note_library(grown)
    shown = policies.describe_one("auto")
    assert (shown["state"], shown["num_missing_experts"], shown["num_experts"]) == ("following", 2, 1)
    assert datetime.now(UTC) - datetime.fromisoformat(shown["behind_since"]) < timedelta(minutes=5)
    assert policy_gauge(metrics, "missing_experts") == 2
    policies.note_library(grown[:2])
    assert policies.describe_one("auto")["num_missing_experts"] == 1
    assert policies.describe_one("auto")["behind_since"] == shown["behind_since"]

    with monkeypatch.context() as patch:
        patch.setattr(ArtefactStore, "publish", full_disk)
        await policies.refresh(grown)
    shown = policies.describe_one("auto")
    assert (shown["state"], shown["num_missing_experts"]) == ("following", 2)
    assert "No space left" in shown["error"]
    assert (await ended(policies.refit("auto"))).state == "succeeded"
    shown = policies.describe_one("auto")
    assert (shown["state"], shown["num_missing_experts"], shown["behind_since"], shown["error"]) == (
        "ready",
        0,
        None,
        None,
    )
    assert policy_gauge(metrics, "missing_experts") == 0


async def test_a_subset_lacks_no_expert_that_it_considered(tmp_path: Path, embedder: BatchingEmbedder) -> None:
    records = [record(name, f"{name} one") for name in ("sql", "dates", "poems")]
    policies = manager(tmp_path, embedder)
    await policies.refresh(records)
    settings = PolicySettings(router="knn", subset=SubsetConfig(method="cluster", size=2))
    spec = PolicySpec("few", settings, origin="admin")
    assert (await ended(await policies.create(spec))).state == "succeeded"
    for opened in (policies, again := manager(tmp_path, embedder)):
        await opened.refresh(records)
        shown = opened.describe_one("few")
        assert (shown["state"], shown["num_experts"], shown["num_missing_experts"]) == ("ready", 2, 0)
    again.note_library([*records, record("cities", "capital of France")])
    assert again.describe_one("few")["num_missing_experts"] == 1


async def test_a_removed_policy_leaves_no_series(tmp_path: Path, embedder: BatchingEmbedder) -> None:
    metrics = Metrics(max_experts=3, prices={})
    policies = manager(tmp_path, embedder, metrics=metrics)
    await policies.refresh([record("sql", "list all orders")])
    spec = PolicySpec("mine", PolicySettings(router="centroid"), origin="admin")
    await ended(await policies.create(spec))
    assert policy_gauge(metrics, "stale", "mine") == policy_gauge(metrics, "missing_experts", "mine") == 0
    await policies.remove("mine")
    assert policy_gauge(metrics, "stale", "mine") is policy_gauge(metrics, "missing_experts", "mine") is None


async def test_the_error_of_a_failed_fit_is_shown_until_a_fit_succeeds(
    tmp_path: Path, embedder: BatchingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    policies = manager(tmp_path, embedder, "classifier", clock=clock)
    first = [record("sql", "list all orders"), record("dates", "convert to ISO")]
    await policies.refresh(first)
    await ended(policies.jobs.all()[0])
    with monkeypatch.context() as patch:
        patch.setattr(ArtefactStore, "publish", full_disk)
        assert (await ended(policies.refit("auto"))).state == "failed"
    clock.now += 1000
    assert await policies.wants_refresh()  # the fit is due again
    for records in (first, [*first, record("poems", "write a sonnet")]):  # up to date, then stale: no fit either way
        await policies.refresh(records)
        assert "No space left" in policies.describe_one("auto")["error"]
        assert not await policies.wants_refresh()
    await ended(policies.refit("auto"))
    assert policies.describe_one("auto")["error"] is None


async def test_data_that_could_not_be_fitted_is_tried_again_when_it_returns(
    tmp_path: Path, embedder: BatchingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = manager(tmp_path, embedder, clock=Clock())
    first = [record("sql", "list all orders")]
    grown = [*first, record("dates", "convert to ISO")]
    await policies.refresh(first)
    with monkeypatch.context() as patch:
        patch.setattr(ArtefactStore, "publish", full_disk)
        await policies.refresh(grown)
    await policies.refresh(first)
    assert len((await policies.refresh(grown))["auto"].expert_ids) == 2


@pytest.mark.parametrize("num_failures", [1, 2, 3, 12])
async def test_retries_come_later_after_each_failure(
    tmp_path: Path, embedder: BatchingEmbedder, monkeypatch: pytest.MonkeyPatch, num_failures: int
) -> None:
    clock = Clock()
    policies = manager(tmp_path, embedder, clock=clock)
    monkeypatch.setattr(ArtefactStore, "publish", full_disk)
    for _ in range(num_failures):
        clock.now += 1000
        await policies.refresh([record("sql", "list all orders")])
    delay_s = min(FIRST_RETRY_S * 2**num_failures, LAST_RETRY_S)
    clock.now += delay_s - 0.1
    assert not await policies.wants_refresh()
    clock.now += 0.2
    assert await policies.wants_refresh()


async def test_a_policy_that_another_gateway_removed_leaves_no_series(
    tmp_path: Path, embedder: BatchingEmbedder
) -> None:
    metrics = Metrics(max_experts=3, prices={})
    policies, other = manager(tmp_path, embedder, metrics=metrics), manager(tmp_path, embedder)
    records = [record("sql", "list all orders")]
    spec = PolicySpec("mine", PolicySettings(router="centroid"), origin="admin")
    await ended(await other.create(spec))
    await policies.refresh(records)
    assert policy_gauge(metrics, "missing_experts", "mine") == 0
    await other.remove("mine")
    await policies.refresh(records)
    assert policy_gauge(metrics, "stale", "mine") is policy_gauge(metrics, "missing_experts", "mine") is None
    assert policy_gauge(metrics, "missing_experts") == 0


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
