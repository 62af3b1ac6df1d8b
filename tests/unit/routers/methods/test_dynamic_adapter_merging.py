"""Dynamic Adapter Merging against its formula in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.preprocessing import FunctionTransformer, StandardScaler, normalize

from routers.base import Decision, GateChoice, RouteQuery, no_progress
from routers.methods.dynamic_adapter_merging import DynamicAdapterMergingConfig, DynamicAdapterMergingRouter
from tests.unit.routers.builders import around, centres, expert_id, library_of, unit


def fitted(blocks: dict[str, np.ndarray], **options: object) -> DynamicAdapterMergingRouter:
    config = DynamicAdapterMergingConfig.model_validate(options)
    artefact = DynamicAdapterMergingRouter.fit(config, library_of(blocks), no_progress)
    return DynamicAdapterMergingRouter.load(config, artefact)


def chosen(decision: Decision) -> dict[str, float]:
    return {expert.expert_id: expert.weight for expert in decision.experts}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("options", [{"temperature": 0.3}, {"top_k": 4, "temperature": 0.5}, {"standardise": False}])
def test_weights_are_a_softmax_over_all_cut_to_the_best(seed: int, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(seed)
    common = 3 * rng.normal(size=16)  # hidden states point much the same way
    blocks = {expert_id(i): unit(common + rng.normal(size=(int(rng.integers(1, 30)), 16))) for i in range(7)}
    query = unit(common + rng.normal(size=16))
    decision = fitted(blocks, threshold=-9.0, **options).route(RouteQuery("", query))
    scaler = StandardScaler().fit(np.concatenate(list(blocks.values())).astype(np.float64))
    if not options.get("standardise", True):
        scaler = FunctionTransformer(check_inverse=False)
    seen = normalize(scaler.transform(query[None].astype(np.float64)))[0]
    logits = {}
    for name, rows in blocks.items():
        centroid = normalize(scaler.transform(rows.astype(np.float64))).mean(axis=0)
        logits[name] = seen @ centroid / np.linalg.norm(centroid)
    odds = {name: np.exp((logit - 1) / options.get("temperature", 0.01)) for name, logit in logits.items()}
    best = sorted(odds, key=lambda name: -odds[name])[: int(options.get("top_k", 2))]
    expected = {name: odds[name] / sum(odds[other] for other in best) for name in best}
    assert list(chosen(decision)) == best
    assert chosen(decision) == pytest.approx(expected, abs=1e-3)
    assert {scored.expert_id: scored.score for scored in decision.candidates} == pytest.approx(logits, abs=2e-6)


def test_the_merge_is_of_updates_or_of_a_and_b_with_the_same_weights() -> None:
    blocks = {expert_id(i): around(centres(3)[i], 9, 0.6, i) for i in range(3)}
    query = RouteQuery("", unit(centres(3)[0] + 0.99 * centres(3)[1]))
    exact, ab = (fitted(blocks, threshold=-9.0, temperature=0.1, merge=merge).route(query) for merge in ("exact", "ab"))
    assert chosen(exact) == chosen(ab)
    assert len(set(chosen(ab).values())) == 2
    assert (exact.gate, ab.gate) == (None, GateChoice("fixed", aggregation="ab"))


def test_one_candidate_has_all_the_weight() -> None:
    blocks = {expert_id(i): around(centres(3)[i], 9, 0.6, i) for i in range(3)}
    only = frozenset({expert_id(2)})
    assert chosen(fitted(blocks, threshold=-9.0).route(RouteQuery("", centres(3)[0], only))) == {expert_id(2): 1.0}


def test_experts_without_examples_are_never_merged() -> None:
    blocks = {expert_id(0): around(centres(2)[0], 9, 0.6), expert_id(1): np.zeros((0, 32), np.float32)}
    decision = fitted(blocks, threshold=-9.0).route(RouteQuery("", centres(2)[0]))
    assert chosen(decision) == {expert_id(0): 1.0}


def test_its_embeddings_are_the_bases_hidden_states() -> None:
    assert DynamicAdapterMergingRouter.card.embedder == "base"
