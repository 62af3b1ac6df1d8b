"""Live policies: fitted artefacts are used again, failures keep the old router, swaps are whole."""

import asyncio
import errno
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from adapters_registry.visibility import EVERYBODY, Audience
from routers.artefacts import ArtefactStore
from routers.base import Artefact, FitData, Matrix, Progress, RouteQuery
from routers.embedders.base import Encoder
from routers.embedders.batching import BatchingEmbedder
from routers.embedders.hashing import HashingEncoder
from routers.errors import BadRouterConfig, NotFittable, UnknownRouter
from routers.library.subset_config import SubsetConfig
from routers.methods.classifier import ClassifierRouter
from routers.methods.knn import KnnConfig, KnnRouter
from server.errors import BadRequest, NotFound
from server.jobs import Job
from server.policies.definitions import PolicySpec, PolicyStore
from server.policies.embedders import Embedders
from server.policies.live import LivePolicy
from server.policies.manager import PolicyManager
from server.policies.scores import Figures, ScoreRow, ScoreStore
from server.policies.vectors import VectorStore
from server.settings import PolicySettings
from server.telemetry.metrics import Metrics
from tests.support.records import record


@pytest.fixture
async def embedder() -> AsyncIterator[BatchingEmbedder]:
    opened = BatchingEmbedder(HashingEncoder())
    yield opened
    await opened.close()


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def manager(
    root: Path,
    embedder: BatchingEmbedder,
    router: str = "knn",
    *,
    metrics: Metrics | None = None,
    clock: Callable[[], float] = time.monotonic,
    open_encoder: Callable[[str], Encoder] = lambda name: HashingEncoder(16),
    **options: object,
) -> PolicyManager:
    return PolicyManager(
        [PolicySpec("auto", PolicySettings(router=router, options=dict(options)))],
        Embedders(embedder, open_encoder, 10),
        ArtefactStore(root / "policies"),
        definitions(root),
        scores(root),
        metrics or Metrics(max_experts=3, prices={}),
        VectorStore(root / "vectors.sqlite"),
        clock=clock,
    )


def definitions(root: Path) -> PolicyStore:
    return PolicyStore(root / "policies")


def scores(root: Path) -> ScoreStore:
    return ScoreStore(root / "scores")


def policy_gauge(metrics: Metrics, name: str, policy: str = "auto") -> float | None:
    return metrics.registry.get_sample_value(f"moergate_policy_{name}", {"policy": policy})


async def ended(policies: PolicyManager, job: Job) -> Job:
    while not job.ended:
        await asyncio.sleep(0.001)
    return job


async def test_an_unchanged_library_is_not_fitted_again(
    tmp_path: Path, embedder: BatchingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [record("sql", "list all orders"), record("dates", "convert to ISO")]
    live = await manager(tmp_path, embedder).refresh(records)
    assert live["auto"].expert_ids == {"sql@00000000", "dates@00000000"}

    def refuse(*_: object) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(KnnRouter, "fit", refuse)
    again = await manager(tmp_path, embedder).refresh(records)
    assert again["auto"].version == live["auto"].version
    query = RouteQuery("list all orders", (await embedder.embed(["list all orders"]))[0])
    assert again["auto"].router.route(query) == live["auto"].router.route(query)


async def test_other_options_are_fitted_anew(tmp_path: Path, embedder: BatchingEmbedder) -> None:
    records = [record("sql", "list all orders")]
    await manager(tmp_path, embedder).refresh(records)
    changed = await manager(tmp_path, embedder, threshold=0.99).refresh(records)
    assert changed["auto"].router.threshold == 0.99  # type: ignore[attr-defined]


async def test_a_damaged_artefact_is_fitted_again(tmp_path: Path, embedder: BatchingEmbedder) -> None:
    records = [record("sql", "list all orders")]
    await manager(tmp_path, embedder).refresh(records)
    for file in tmp_path.rglob("*.safetensors"):
        file.chmod(0o644)
        file.write_bytes(b"garbage")
    assert "auto" in await manager(tmp_path, embedder).refresh(records)


@pytest.mark.parametrize("missing", ["calibration", "library"])
async def test_an_artefact_of_another_format_is_fitted_again(
    tmp_path: Path, embedder: BatchingEmbedder, missing: str
) -> None:
    records = [record("sql", "list all orders")]
    await manager(tmp_path, embedder).refresh(records)
    store = ArtefactStore(tmp_path / "policies")
    artefact = store.current("auto")
    assert artefact is not None
    store.publish("auto", replace(artefact, data={k: v for k, v in artefact.data.items() if k != missing}))
    assert (await manager(tmp_path, embedder).refresh(records))["auto"].expert_ids == {"sql@00000000"}
    current = store.current("auto")
    assert current is not None
    assert missing in current.data


async def test_a_policy_knows_what_it_was_fitted_to_also_from_an_older_artefact(
    tmp_path: Path, embedder: BatchingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = ("list all orders", "list all late orders", "count all orders", "list new orders")
    records = [record("sql", *orders), record("dates", "date in ISO form", "a date as ISO form"), record("bare")]
    fitted = (await manager(tmp_path, embedder).refresh(records))["auto"].fitting
    assert fitted is not None
    assert fitted.num == 6
    assert fitted.shares["sql"] == pytest.approx(2 * fitted.shares["dates"])
    assert sum(fitted.shares.values()) == pytest.approx(1)
    assert fitted.confidence
    store = ArtefactStore(tmp_path / "policies")
    artefact = store.current("auto")
    assert artefact is not None
    older = {key: value for key, value in artefact.data.items() if key != "left_out"}
    store.publish("auto", replace(artefact, data=older))

    def refuse(*_: object) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(KnnRouter, "fit", refuse)
    reopened = (await manager(tmp_path, embedder).refresh(records))["auto"].fitting
    assert reopened is not None
    assert reopened.shares == pytest.approx({"sql": 2 / 3, "dates": 1 / 3})
    assert (await manager(tmp_path / "other", embedder, "random").refresh(records))["auto"].fitting is None


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


async def test_bad_policies_are_refused_at_once(tmp_path: Path, embedder: BatchingEmbedder) -> None:
    with pytest.raises(BadRouterConfig, match="kk"):
        manager(tmp_path, embedder, kk=3)
    with pytest.raises(UnknownRouter, match="knn"):
        manager(tmp_path, embedder, router="knm")


async def test_a_costly_policy_goes_stale_and_is_fitted_on_demand(tmp_path: Path, embedder: BatchingEmbedder) -> None:
    metrics = Metrics(max_experts=3, prices={})
    policies = manager(tmp_path, embedder, "classifier", metrics=metrics)
    first = [record("sql", "list all orders"), record("dates", "convert to ISO")]
    assert "auto" not in await policies.refresh(first)  # a job fits it, and nobody else waits for that
    (job,) = policies.jobs.all()
    assert (await ended(policies, job)).state == "succeeded"
    assert not (await policies.refresh(first))["auto"].stale
    grown = [*first, record("poems", "write a sonnet")]
    stale = (await policies.refresh(grown))["auto"]
    assert stale.stale
    assert len(stale.expert_ids) == 2
    assert policies.describe_one("auto")["state"] == "stale"
    reopened = (await manager(tmp_path, embedder, "classifier").refresh(grown))["auto"]
    assert reopened.stale
    assert (await ended(policies, policies.refit("auto"))).state == "succeeded"
    shown = policies.describe_one("auto")
    assert (shown["state"], shown["num_experts"]) == ("ready", 3)
    assert policy_gauge(metrics, "stale") == 0


async def test_policies_made_while_running_survive_a_restart(tmp_path: Path, embedder: BatchingEmbedder) -> None:
    records = [record("sql", "list all orders"), record("dates", "convert to ISO")]
    policies = manager(tmp_path, embedder)
    await policies.refresh(records)
    shown: list[Mapping[str, LivePolicy]] = []
    policies.on_change = shown.append
    job = await policies.create(PolicySpec("mine", PolicySettings(router="centroid"), origin="admin"))
    assert (await ended(policies, job)).state == "succeeded"
    assert set(shown[-1]) == {"auto", "mine"}
    assert set(await manager(tmp_path, embedder).refresh(records)) == {"auto", "mine"}
    await policies.remove("mine")
    assert set(shown[-1]) == {"auto"}
    assert set(await manager(tmp_path, embedder).refresh(records)) == {"auto"}
    assert not (tmp_path / "policies" / "mine").exists()


async def test_a_fit_that_was_killed_begins_again_at_the_next_start(tmp_path: Path, embedder: BatchingEmbedder) -> None:
    PolicyStore(tmp_path / "policies").save(PolicySpec("mine", PolicySettings(router="centroid"), origin="admin"))
    half = tmp_path / "policies" / "mine" / ".new-half"
    half.mkdir()
    (half / "artefact.safetensors").write_bytes(b"half an arte")
    (tmp_path / "policies" / "bad").mkdir()
    (tmp_path / "policies" / "bad" / "policy.json").write_text('{"router": "kn')
    live = await manager(tmp_path, embedder).refresh([record("sql", "list all orders")])
    assert set(live) == {"auto", "mine"}


async def test_what_a_policy_lacks_is_said_with_the_command_that_makes_it(
    tmp_path: Path, embedder: BatchingEmbedder
) -> None:
    policies = manager(tmp_path, embedder)
    await policies.refresh([record("sql", "list all orders")])
    for router, command in [("best_single", "moergate score"), ("lora_hub", "--data")]:
        with pytest.raises(NotFittable, match=command):
            await policies.create(PolicySpec("mine", PolicySettings(router=router)))
    with pytest.raises(BadRequest, match="settings"):
        await policies.create(PolicySpec("auto", PolicySettings(router="centroid")))
    with pytest.raises(BadRequest, match="settings"):
        await policies.remove("auto")
    with pytest.raises(NotFound):
        policies.refit("none")
    assert set(policies.live) == {"auto"}


async def test_a_fit_can_be_cancelled_and_what_was_before_stays(
    tmp_path: Path, embedder: BatchingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = manager(tmp_path, embedder)
    before = (await policies.refresh([record("sql", "list all orders")]))["auto"]
    fitting = threading.Event()

    def slow(config: object, data: object, progress: Progress) -> Artefact:
        fitting.set()
        while True:
            progress(1, 2)
            time.sleep(0.001)

    monkeypatch.setattr(KnnRouter, "fit", slow)
    job = policies.refit("auto")
    await asyncio.to_thread(fitting.wait)
    assert (job.phase, job.state) == ("fitting", "running")
    job.cancel()
    assert (await ended(policies, job)).state == "cancelled"
    assert policies.live["auto"] is before


async def test_a_disk_that_is_full_is_said_and_changes_nothing(
    tmp_path: Path, embedder: BatchingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = manager(tmp_path, embedder)
    before = (await policies.refresh([record("sql", "list all orders")]))["auto"]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("routers.artefacts._write", full)
        job = await ended(policies, policies.refit("auto"))
    assert (job.state, "No space left" in job.error) == ("failed", True)
    assert policies.live["auto"] is before
    assert (await ended(policies, policies.refit("auto"))).state == "succeeded"


async def test_a_subset_restricts_a_policy(tmp_path: Path, embedder: BatchingEmbedder) -> None:
    records = [record(name, f"{name} {word}") for name in ("sql", "dates", "poems") for word in ("one",)]
    policies = manager(tmp_path, embedder)
    await policies.refresh(records)
    settings = PolicySettings(router="knn", subset=SubsetConfig(method="cluster", size=2))
    job = await ended(policies, await policies.create(PolicySpec("few", settings)))
    assert job.state == "succeeded", job.error
    assert len(policies.live["few"].expert_ids) == 2
    assert len(policies.live["auto"].expert_ids) == 3


async def test_scores_make_policies_that_learn_from_them(tmp_path: Path, embedder: BatchingEmbedder) -> None:
    records = [record("sql", "list all orders"), record("dates", "convert to ISO")]
    policies = manager(tmp_path, embedder)
    await policies.refresh(records)
    figures = {"base": Figures(score=0), "sql@00000000": Figures(score=1), "dates@00000000": Figures(score=0.5)}
    scores(tmp_path).report([ScoreRow(task="sql", prompt="list orders", answer="x", models=figures)])
    job = await policies.create(PolicySpec("best", PolicySettings(router="best_single"), origin="admin"))
    assert (await ended(policies, job)).state == "succeeded", job.error
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
    assert (await ended(policies, quick)).state == "succeeded"
    grown = [record("sql", "list all orders"), record("dates", "convert to ISO")]
    live = await asyncio.wait_for(policies.refresh(grown), 5)
    assert len(live["auto"].expert_ids) == len(live["quick"].expert_ids) == 2
    assert "slow" not in live
    free.set()
    assert (await ended(policies, slow)).state == "succeeded"
    assert await policies.wants_refresh()
    await policies.refresh(grown)
    while len(policies.live["slow"].expert_ids) < 2:
        await asyncio.sleep(0.001)
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
    await ended(policies, policies.refit("auto"))
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
    await ended(policies, await policies.create(PolicySpec("mine", PolicySettings(router="knn"), origin="admin")))
    await policies.refresh(records)
    monkeypatch.setattr(KnnRouter, "fit", spied)
    redefined = PolicySpec("mine", PolicySettings(router="knn", embedder="hashing-16"), origin="admin")
    definitions(tmp_path).save(redefined)  # as another gateway does
    live = await policies.refresh(records)
    while live["mine"].embedder.dim != 16:
        await asyncio.sleep(0.01)
        live = await policies.refresh(records)
    assert told == [("hashing-16", None)]


async def test_each_policy_is_shown_as_soon_as_it_is_fitted(tmp_path: Path, embedder: BatchingEmbedder) -> None:
    policies = manager(tmp_path, embedder)
    await policies.create(PolicySpec("second", PolicySettings(router="centroid"), origin="admin"))
    await policies.refresh([record("sql", "list all orders")])
    await ended(policies, policies.jobs.all()[0])
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
    live = await asyncio.wait_for(policies.refresh(grown), 5)
    assert len(live["auto"].expert_ids) == 3
    assert "slow" not in live
    free.set()
    assert (await ended(policies, job)).state == "succeeded"
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


async def test_a_fit_of_a_definition_that_was_replaced_or_removed_is_thrown_away(
    tmp_path: Path, embedder: BatchingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = threading.Event()
    fit = KnnRouter.fit

    def slowly(config: KnnConfig, data: FitData, progress: Progress) -> Artefact:
        if config.max_candidates == 3:
            free.wait()
        return fit(config, data, progress)

    policies, other = manager(tmp_path, embedder), manager(tmp_path, embedder)
    records = [record("sql", "list all orders")]
    await policies.refresh(records)
    await other.refresh(records)
    monkeypatch.setattr(KnnRouter, "fit", slowly)
    first = PolicySpec("mine", PolicySettings(router="knn", options={"max_candidates": 3}), origin="admin")
    slow = await policies.create(first)
    while slow.phase != "fitting":
        await asyncio.sleep(0.01)
    second = PolicySpec("mine", PolicySettings(router="knn", options={"max_candidates": 7}), origin="admin")
    definitions(tmp_path).save(second)  # as another gateway does
    assert await policies.wants_refresh()
    await policies.refresh(records)
    free.set()
    assert (await ended(policies, slow)).state == "cancelled"
    assert await policies.wants_refresh()
    for each in (policies, other):
        live = (await each.refresh(records))["mine"]
        assert live.router.config.max_candidates == 7  # type: ignore[attr-defined]
    assert policies.live["mine"].provenance == other.live["mine"].provenance

    free.clear()
    slow = await policies.create(first)
    while slow.phase != "fitting":
        await asyncio.sleep(0.01)
    await policies.remove("mine")
    free.set()
    assert (await ended(policies, slow)).state == "cancelled"
    assert "mine" not in await policies.refresh(records)
    assert not (tmp_path / "policies" / "mine").exists()


async def test_whom_a_policy_is_for_holds_before_it_is_fitted_again(
    tmp_path: Path, embedder: BatchingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = threading.Event()
    policies, shown = manager(tmp_path, embedder), list[Mapping[str, LivePolicy]]()
    policies.on_change = shown.append
    await policies.refresh([record("sql", "list all orders")])
    spec = PolicySpec("mine", PolicySettings(router="knn"), origin="admin")
    await ended(policies, await policies.create(spec))
    assert shown[-1]["mine"].audience == EVERYBODY
    monkeypatch.setattr(KnnRouter, "fit", lambda *_: free.wait())
    job = await policies.create(replace(spec, settings=PolicySettings(router="knn", tenant="bank", tags=["x"])))
    assert not job.ended
    assert shown[-1]["mine"].audience == Audience(frozenset({"x"}), "bank")
    first = PolicySpec("new", PolicySettings(router="knn", tenant="bank"), origin="admin")
    others = await policies.create(first)
    assert policies.pending == {"new": Audience(tenant="bank")}
    free.set()
    for each in (job, others):
        await ended(policies, each)


async def test_a_live_policy_whose_fit_failed_is_tried_again(
    tmp_path: Path, embedder: BatchingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, metrics = Clock(), Metrics(max_experts=3, prices={})
    policies = manager(tmp_path, embedder, metrics=metrics, clock=clock)
    await policies.refresh([record("sql", "list all orders")])
    grown = [record("sql", "list all orders"), record("dates", "convert to ISO")]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ArtefactStore, "publish", full)
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
    await ended(policies, job)
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

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ArtefactStore, "publish", full)
        await policies.refresh(grown)
    shown = policies.describe_one("auto")
    assert (shown["state"], shown["num_missing_experts"]) == ("following", 2)
    assert "No space left" in shown["error"]
    assert (await ended(policies, policies.refit("auto"))).state == "succeeded"
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
    assert (await ended(policies, await policies.create(spec))).state == "succeeded"
    for opened in (policies, again := manager(tmp_path, embedder)):
        await opened.refresh(records)
        shown = opened.describe_one("few")
        assert (shown["state"], shown["num_experts"], shown["num_missing_experts"]) == ("ready", 2, 0)
    again.note_library([*records, record("cities", "capital of France")])
    assert again.describe_one("few")["num_missing_experts"] == 1


async def test_a_cancelled_first_fit_is_shown_and_not_begun_again(
    tmp_path: Path, embedder: BatchingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(config: object, data: object, progress: Progress) -> Artefact:
        while True:
            progress(1, 2)
            time.sleep(0.001)

    monkeypatch.setattr(ClassifierRouter, "fit", slow)
    policies = manager(tmp_path, embedder, "classifier")
    records = [record("sql", "list all orders"), record("dates", "convert to ISO")]
    await policies.refresh(records)
    (job,) = policies.jobs.all()
    job.cancel()
    await ended(policies, job)
    assert policies.describe_one("auto")["state"] == "cancelled"
    await policies.refresh(records)
    assert policies.jobs.all() == [job]


async def test_a_removed_policy_leaves_no_series(tmp_path: Path, embedder: BatchingEmbedder) -> None:
    metrics = Metrics(max_experts=3, prices={})
    policies = manager(tmp_path, embedder, metrics=metrics)
    await policies.refresh([record("sql", "list all orders")])
    spec = PolicySpec("mine", PolicySettings(router="centroid"), origin="admin")
    await ended(policies, await policies.create(spec))
    assert policy_gauge(metrics, "stale", "mine") == policy_gauge(metrics, "missing_experts", "mine") == 0
    await policies.remove("mine")
    assert policy_gauge(metrics, "stale", "mine") is policy_gauge(metrics, "missing_experts", "mine") is None
