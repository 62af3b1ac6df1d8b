"""Preferences: the simplex, the scale, whom a caller may name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from pydantic import ValidationError

from routers.base import Decision, GateChoice, LibraryExpert, RouteQuery, no_progress
from routers.fitting import fit_data
from routers.methods.preference import PreferenceConfig, PreferenceRouter
from tests.unit.routers.builders import ids

EXPERTS = ("cook@00000001", "math@00000002", "sail@00000003")


def ask(
    preference: Mapping[str, float] | None, candidates: frozenset[str] | None = None, **options: object
) -> Decision:
    config = PreferenceConfig.model_validate(options)
    data = fit_data([LibraryExpert(expert) for expert in EXPERTS], {}, "none")
    router = PreferenceRouter.load(config, PreferenceRouter.fit(config, data, no_progress))
    return router.route(RouteQuery("", candidates=candidates, preference=preference))


def chosen(decision: Decision) -> dict[str, float]:
    return {expert.expert_id: expert.weight for expert in decision.experts}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
def test_weights_are_the_preference_on_the_simplex_times_the_scale(seed: int, scale: float) -> None:
    wanted = np.random.default_rng(seed).dirichlet(np.ones(3)) * 17
    decision = ask(dict(zip(EXPERTS, wanted.tolist(), strict=True)), scale=scale)
    assert chosen(decision) == pytest.approx(dict(zip(EXPERTS, scale * wanted / wanted.sum(), strict=True)))
    assert decision.confidence == pytest.approx(wanted.max() / wanted.sum())
    assert decision.gate is None


def test_experts_go_by_name_or_by_id() -> None:
    assert chosen(ask({"cook": 1, "cook@00000001": 1, "sail@00000003": 2})) == {EXPERTS[0]: 0.5, EXPERTS[2]: 0.5}


def test_what_cannot_be_used_is_ignored_before_the_weights_are_scaled() -> None:
    wanted = {"cook": 1.0, "sail": 3.0, "math": 4.0, "nobody": 8.0}
    hidden = ask(wanted, frozenset({EXPERTS[0], EXPERTS[2]}))
    assert chosen(hidden) == {EXPERTS[0]: 0.25, EXPERTS[2]: 0.75}
    assert hidden == ask({"cook": 1.0, "sail": 3.0})
    assert "math" not in hidden.reason
    assert "nobody" not in hidden.reason


@pytest.mark.parametrize("wanted", [{"nobody": 1.0}, {"cook": 0.0}, {"cook": -1.0}, {"cook": float("nan")}])
def test_abstains_if_nothing_is_wanted(wanted: dict[str, float]) -> None:
    decision = ask(wanted)
    assert decision.abstained
    assert decision.confidence == 0


def test_the_default_is_for_requests_without_a_preference() -> None:
    assert ask(None).abstained
    assert ask({}).abstained
    default = {"math": 2.0, "sail": 2.0}
    assert chosen(ask(None, default=default)) == {EXPERTS[1]: 0.5, EXPERTS[2]: 0.5}
    assert chosen(ask({"cook": 0.1}, default=default)) == {EXPERTS[0]: 1.0}
    assert ask({"nobody": 1.0}, default=default).abstained


def test_a_single_expert_keeps_its_scale() -> None:
    assert ask({"cook": 5}).gate is None
    halved = ask({"cook": 5}, scale=0.5)
    assert (chosen(halved), halved.gate) == ({EXPERTS[0]: 0.5}, GateChoice("fixed"))


def test_the_best_wanted_comes_first() -> None:
    assert ids(ask({"cook": 1, "math": 3, "sail": 3}).candidates) == [EXPERTS[1], EXPERTS[2], EXPERTS[0]]


@pytest.mark.parametrize("options", [{"scale": 0}, {"scale": float("nan")}, {"default": {"a": -1}}])
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ask(None, **options)
