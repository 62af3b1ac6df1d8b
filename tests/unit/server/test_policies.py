"""Live policies: fitted artefacts are used again, failures keep the old router, swaps are whole."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from adapters_registry.records import AdapterRecord, AdapterState, Card, utc_now
from routers.artefacts import ArtefactStore
from routers.base import RouteQuery
from routers.embedders.batching import BatchingEmbedder
from routers.embedders.hashing import HashingEncoder
from routers.errors import BadRouterConfig, UnknownRouter
from routers.knn import KnnRouter
from server.metrics import Metrics
from server.policies import PolicyManager
from server.settings import PolicySettings


def record(name: str, *examples: str) -> AdapterRecord:
    now = utc_now()
    return AdapterRecord(
        name=name,
        version="0" * 8,
        sha256="0" * 64,
        state=AdapterState.ACTIVE,
        card=Card(),
        examples=examples,
        rank=4,
        alpha=8,
        target_modules=("q_proj",),
        size_bytes=1,
        base_model="tiny",
        created_at=now,
        updated_at=now,
    )


@pytest.fixture
async def embedder() -> AsyncIterator[BatchingEmbedder]:
    opened = BatchingEmbedder(HashingEncoder())
    yield opened
    await opened.close()


def manager(root: Path, embedder: BatchingEmbedder, **options: object) -> PolicyManager:
    policies = {"auto": PolicySettings(router="knn", options=dict(options))}
    return PolicyManager(policies, embedder, ArtefactStore(root), Metrics(max_experts=3, prices={}))


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
    assert again["auto"].library_version == live["auto"].library_version
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


async def test_a_fit_that_fails_keeps_the_old_router(
    tmp_path: Path, embedder: BatchingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = manager(tmp_path, embedder)
    before = (await policies.refresh([record("sql", "list all orders")]))["auto"]

    def fail(*_: object) -> None:
        raise RuntimeError("no")

    with monkeypatch.context() as patch:
        patch.setattr(KnnRouter, "fit", fail)
        kept = (await policies.refresh([record("dates", "convert to ISO")]))["auto"]
    assert kept is before
    assert policies._metrics.registry.get_sample_value("moergate_policy_stale", {"policy": "auto"}) == 1
    after = (await policies.refresh([record("dates", "convert to ISO")]))["auto"]
    assert after.expert_ids == {"dates@00000000"}
    assert policies._metrics.registry.get_sample_value("moergate_policy_stale", {"policy": "auto"}) == 0


async def test_bad_policies_are_refused_at_once(tmp_path: Path, embedder: BatchingEmbedder) -> None:
    with pytest.raises(BadRouterConfig, match="kk"):
        manager(tmp_path, embedder, kk=3)
    with pytest.raises(UnknownRouter, match="knn"):
        PolicyManager(
            {"auto": PolicySettings(router="knm")}, embedder, ArtefactStore(tmp_path), Metrics(max_experts=1, prices={})
        )
