"""Jobs of policies, and definitions through the admin API: one gateway's view of both."""

import asyncio
import errno
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from adapters_registry.visibility import EVERYBODY, Audience
from routers.base import Artefact, FitData, Progress
from routers.embedders.batching import BatchingEmbedder
from routers.errors import BadRouterConfig, NotFittable, UnknownRouter
from routers.methods.classifier import ClassifierRouter
from routers.methods.knn import KnnConfig, KnnRouter
from server.errors import BadRequest, NotFound
from server.policies.definitions import PolicySpec, PolicyStore
from server.policies.live import LivePolicy
from server.settings import PolicySettings
from tests.support.policies import definitions, ended, manager
from tests.support.records import record
from tests.support.waiting import eventually


async def test_bad_policies_are_refused_at_once(tmp_path: Path, embedder: BatchingEmbedder) -> None:
    with pytest.raises(BadRouterConfig, match="kk"):
        manager(tmp_path, embedder, kk=3)
    with pytest.raises(UnknownRouter, match="knn"):
        manager(tmp_path, embedder, router="knm")


async def test_policies_made_while_running_survive_a_restart(tmp_path: Path, embedder: BatchingEmbedder) -> None:
    records = [record("sql", "list all orders"), record("dates", "convert to ISO")]
    policies = manager(tmp_path, embedder)
    await policies.refresh(records)
    shown: list[Mapping[str, LivePolicy]] = []
    policies.on_change = shown.append
    job = await policies.create(PolicySpec("mine", PolicySettings(router="centroid"), origin="admin"))
    assert (await ended(job)).state == "succeeded"
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
    assert (await ended(job)).state == "cancelled"
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
        job = await ended(policies.refit("auto"))
    assert (job.state, "No space left" in job.error) == ("failed", True)
    assert policies.live["auto"] is before
    assert (await ended(policies.refit("auto"))).state == "succeeded"


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
    await eventually(lambda: slow.phase == "fitting")
    second = PolicySpec("mine", PolicySettings(router="knn", options={"max_candidates": 7}), origin="admin")
    definitions(tmp_path).save(second)  # as another gateway does
    assert await policies.wants_refresh()
    await policies.refresh(records)
    free.set()
    assert (await ended(slow)).state == "cancelled"
    assert await policies.wants_refresh()
    for each in (policies, other):
        live = (await each.refresh(records))["mine"]
        assert live.router.config.max_candidates == 7  # type: ignore[attr-defined]
    assert policies.live["mine"].provenance == other.live["mine"].provenance

    free.clear()
    slow = await policies.create(first)
    await eventually(lambda: slow.phase == "fitting")
    await policies.remove("mine")
    free.set()
    assert (await ended(slow)).state == "cancelled"
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
    await ended(await policies.create(spec))
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
        await ended(each)


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
    await ended(job)
    assert policies.describe_one("auto")["state"] == "cancelled"
    await policies.refresh(records)
    assert policies.jobs.all() == [job]
