"""From data to a policy that can decide: artefacts are used again if they fit, and published whole."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from routers.artefacts import ArtefactStore
from routers.base import Artefact, FitData, Progress, RouteQuery, Sample, no_progress
from routers.embedders.batching import BatchingEmbedder
from routers.embedders.hashing import HashingEncoder
from routers.errors import NotFittable
from routers.library.subset_config import SubsetConfig
from routers.methods.knn import KnnConfig, KnnRouter
from server.jobs import JobCancelled
from server.policies.book import Entry
from server.policies.definitions import PolicySpec
from server.policies.fit_data import PolicyData, as_experts
from server.policies.fitter import Fitter, Superseded
from server.policies.vectors import VectorStore
from server.settings import PolicySettings
from tests.support.policies import ended, manager, scores
from tests.support.records import record


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


async def test_a_subset_restricts_a_policy(tmp_path: Path, embedder: BatchingEmbedder) -> None:
    records = [record(name, f"{name} {word}") for name in ("sql", "dates", "poems") for word in ("one",)]
    policies = manager(tmp_path, embedder)
    await policies.refresh(records)
    settings = PolicySettings(router="knn", subset=SubsetConfig(method="cluster", size=2))
    job = await ended(await policies.create(PolicySpec("few", settings)))
    assert job.state == "succeeded", job.error
    assert len(policies.live["few"].expert_ids) == 2
    assert len(policies.live["auto"].expert_ids) == 3


# -- one fit ------------------------------------------------------------------------------------------------------


def entry_of(router: str, **settings: object) -> Entry:
    return Entry.of(PolicySpec("mine", PolicySettings.model_validate({"router": router, **settings})))


async def gathered(root: Path, embedder: BatchingEmbedder, *names: str) -> FitData:
    experts = as_experts([record(name, f"example of {name}") for name in names])
    return await PolicyData(scores(root), VectorStore(root / "vectors.sqlite")).gather(
        experts, embedder, with_scores=False
    )


async def test_a_fit_publishes_what_it_opens(tmp_path: Path, embedder: BatchingEmbedder) -> None:
    data = await gathered(tmp_path, embedder, "sql", "dates", "poems")
    store, entry = ArtefactStore(tmp_path / "fitted"), entry_of("knn", subset={"method": "cluster", "size": 2})
    live = await Fitter(store).fit(entry, data, "v1", embedder, no_progress)
    known = {"dates@00000000", "poems@00000000", "sql@00000000"}
    assert (live.name, live.router_name, live.version, live.spec) == ("mine", "knn", "v1", entry.spec)
    assert (len(live.expert_ids), live.known_ids) == (2, known)
    assert live.expert_ids < known
    published = store.current("mine")
    assert published is not None
    assert (published.library_version, published.data["config"]) == ("v1", entry.artefact_config)
    assert set(published.data["library"]) == live.expert_ids
    assert set(published.data["considered"]) == live.known_ids
    assert published.data["provenance"] == live.provenance
    assert live.provenance.keys() == {"code_version", "fitted_at"}


async def test_a_superseded_fit_publishes_nothing(tmp_path: Path, embedder: BatchingEmbedder) -> None:
    data, store = await gathered(tmp_path, embedder, "sql"), ArtefactStore(tmp_path / "fitted")
    with pytest.raises(Superseded):
        await Fitter(store).fit(entry_of("knn"), data, "v1", embedder, no_progress, is_wanted=lambda: False)
    assert store.current("mine") is None


async def test_an_exception_of_the_progress_ends_a_fit(tmp_path: Path, embedder: BatchingEmbedder) -> None:
    class Asking(KnnRouter):
        @classmethod
        def fit(cls, config: KnnConfig, data: FitData, progress: Progress) -> Artefact:
            progress(1, 2)
            return super().fit(config, data, progress)

    def cancelled(_done: int, _total: int) -> None:
        raise JobCancelled("cancelled")

    data, store = await gathered(tmp_path, embedder, "sql"), ArtefactStore(tmp_path / "fitted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KnnRouter, "fit", Asking.fit)
        with pytest.raises(JobCancelled):
            await Fitter(store).fit(entry_of("knn"), data, "v1", embedder, cancelled)
    assert store.current("mine") is None


@pytest.mark.parametrize(
    ("settings", "command"),
    [
        ({"router": "best_single"}, "Supply it with: moergate score --tasks DIR"),
        ({"router": "lora_hub"}, "moergate fit POLICY --router NAME --data FILE.jsonl"),
        ({"router": "knn", "subset": {"method": "greedy", "size": 2}}, "moergate score --tasks DIR"),
    ],
)
async def test_a_method_that_lacks_something_names_the_command(
    tmp_path: Path, embedder: BatchingEmbedder, settings: dict[str, object], command: str
) -> None:
    data = await gathered(tmp_path, embedder, "sql", "dates", "poems")
    with pytest.raises(NotFittable) as caught:
        await Fitter(ArtefactStore(tmp_path)).fit(entry_of(**settings), data, "v1", embedder, no_progress)  # type: ignore[arg-type]
    assert str(caught.value).endswith(command)


async def test_a_fit_gets_the_previous_router_and_the_samples(
    tmp_path: Path, embedder: BatchingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[FitData] = []
    fit = KnnRouter.fit

    def spied(config: KnnConfig, data: FitData, progress: Progress) -> Artefact:
        given.append(data)
        return fit(config, data, progress)

    monkeypatch.setattr(KnnRouter, "fit", spied)
    spec = replace(entry_of("knn").spec, samples=(Sample("two and two", "four"),))
    data, fitter = await gathered(tmp_path, embedder, "sql"), Fitter(ArtefactStore(tmp_path / "fitted"))
    first = await fitter.fit(Entry.of(spec), data, "v1", embedder, no_progress)
    await fitter.fit(Entry.of(spec), data, "v2", embedder, no_progress, previous=first.router)
    assert [(each.version, each.previous) for each in given] == [("v1", None), ("v2", first.router)]
    assert all(each.samples == spec.samples for each in given)
    rows = await asyncio.to_thread(given[0].embed, ["list all orders"])  # type: ignore[misc]
    assert rows.shape == (1, embedder.dim)


async def test_an_artefact_is_opened_again_only_for_the_same_definition_and_data(
    tmp_path: Path, embedder: BatchingEmbedder
) -> None:
    data, fitter = await gathered(tmp_path, embedder, "sql"), Fitter(ArtefactStore(tmp_path / "fitted"))
    assert await fitter.reopen(entry_of("knn"), embedder, data.experts) is None
    made = await fitter.fit(entry_of("knn"), data, "v1", embedder, no_progress)
    found = await fitter.fitted_elsewhere(entry_of("knn"), "v1", embedder, data.experts)
    assert found is not None
    assert (found.version, found.expert_ids, found.provenance) == ("v1", made.expert_ids, made.provenance)
    assert await fitter.fitted_elsewhere(entry_of("knn"), "v2", embedder, data.experts) is None
    other = BatchingEmbedder(HashingEncoder(16))
    assert await fitter.reopen(entry_of("knn"), other, data.experts) is None
    await other.close()
    for settings in ({"router": "centroid"}, {"router": "knn", "options": {"threshold": 0.5}}):
        assert await fitter.reopen(entry_of(**settings), embedder, data.experts) is None  # type: ignore[arg-type]
