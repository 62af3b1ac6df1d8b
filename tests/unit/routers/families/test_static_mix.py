"""LoraHub and the learnt mix: their searches on losses whose minimum is known, and what they decide."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import nevergrad
import numpy as np
import pytest

from routers.base import Decision, FitData, GateChoice, LibraryExpert, RouteQuery, Sample, no_progress
from routers.errors import BadArtefact, NotFittable
from routers.families.static_mix import MeanLoss, drawn
from routers.fitting import fit_data
from routers.methods.learned_mix import LearnedMixConfig, LearnedMixRouter
from routers.methods.lora_hub import LoraHubConfig, LoraHubRouter
from tests.unit.routers.builders import expert_id, ids


@dataclass
class Quadratic:
    """The loss of a sample is the squared distance of the weights from what its task wants, plus its number."""

    wanted: Mapping[str, np.ndarray]
    calls: list[tuple[dict[str, float], tuple[Sample, ...], str]] = field(default_factory=list)

    def __call__(self, weights: Mapping[str, float], samples: Sequence[Sample], formula: str = "exact") -> np.ndarray:
        self.calls.append((dict(weights), tuple(samples), formula))
        given = np.array([weights[expert] for expert in sorted(weights)])
        return np.array([((given - self.wanted[s.task]) ** 2).sum() + float(s.answer) / 100 for s in samples])


def samples_of(task: str, num: int) -> tuple[Sample, ...]:
    return tuple(Sample(f"{task} {n}", str(n), task) for n in range(num))


def data_of(num_experts: int, samples: tuple[Sample, ...], losses: Quadratic) -> FitData:
    experts = [LibraryExpert(expert_id(i)) for i in range(num_experts)]
    return replace(fit_data(experts, {}, "none"), samples=samples, losses=losses)


def weights_of(decision: Decision) -> dict[str, float]:
    return {expert.expert_id: expert.weight for expert in decision.experts}


# -- LoraHub ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:COBYLA")
@pytest.mark.parametrize(("num_experts", "seed", "budget"), [(20, 0, 40), (20, 5, 40), (4, 1, 25), (1, 0, 10)])
def test_lora_hub_is_nevergrad_on_the_papers_objective(num_experts: int, seed: int, budget: int) -> None:
    wanted = np.random.default_rng(seed + 7).uniform(-1, 1, num_experts)
    loss = Quadratic({"t": wanted})
    config = LoraHubConfig(seed=seed, budget=budget)
    found = LoraHubRouter.fit(config, data_of(num_experts, samples_of("t", 5), loss), no_progress).data["weights"]

    def objective(weights: np.ndarray) -> float:
        entropy = np.mean([np.sum((weights - wanted) ** 2) + n / 100 for n in range(5)])
        return float(entropy + 0.05 * sum(abs(w) for w in weights) / len(weights))

    space = nevergrad.p.Array(init=[0] * num_experts, upper=[1.5] * num_experts, lower=[-1.5] * num_experts)
    optimizer = nevergrad.optimizers.NGOpt(parametrization=space, budget=budget)
    optimizer.parametrization.random_state.seed(seed)
    expected = optimizer.minimize(objective).value

    np.testing.assert_allclose(list(found.values()), expected, atol=1e-6)
    assert len(loss.calls) == budget
    assert {formula for _, _, formula in loss.calls} == {"ab"}
    assert np.sum((expected - wanted) ** 2) < 0.25 * np.sum(wanted**2)  # much better than no expert at all


@pytest.mark.parametrize(("num_experts", "budget", "num_calls"), [(6, 40, 40), (3, 400, 150)])
def test_lora_hub_does_not_hang_on_other_random_numbers(num_experts: int, budget: int, num_calls: int) -> None:
    results = []
    for global_seed in (1, 2):
        loss = Quadratic({"t": np.linspace(-1, 1, num_experts)})
        np.random.seed(global_seed)
        data = data_of(num_experts, samples_of("t", 3), loss)
        results.append(LoraHubRouter.fit(LoraHubConfig(budget=budget), data, no_progress).data)
        assert len(loss.calls) == num_calls
    assert results[0] == results[1]


def test_the_penalty_draws_weights_to_zero() -> None:
    data = data_of(3, samples_of("t", 3), Quadratic({"t": np.array([0.8, -0.8, 0.4])}))
    size = {}
    for penalty in (0.0, 1.2, 1000.0):
        weights = LoraHubRouter.fit(LoraHubConfig(penalty=penalty, budget=60), data, no_progress).data["weights"]
        size[penalty] = [abs(w) for w in weights.values()]
    assert size[0.0] == pytest.approx([0.8, 0.8, 0.4], abs=0.02)
    assert size[1.2] == pytest.approx([0.6, 0.6, 0.2], abs=0.02)  # soft threshold: 1.2 / 3 / 2
    assert size[1000.0] == pytest.approx([0, 0, 0], abs=0.01)


def test_exact_keeps_to_weights_that_a_mix_can_have() -> None:
    loss = Quadratic({"t": np.array([0.9, -1.0, 2.0])})
    config = LoraHubConfig(formula="exact", budget=80, penalty=0.0)
    artefact = LoraHubRouter.fit(config, data_of(3, samples_of("t", 2), loss), no_progress)
    assert list(artefact.data["weights"].values()) == pytest.approx([0.9, 0.0, 1.5], abs=0.05)
    assert {formula for _, _, formula in loss.calls} == {"exact"}
    assert all(0 <= w <= 1.5 for weights, _, _ in loss.calls for w in weights.values())
    decision = LoraHubRouter.load(config, artefact).route(RouteQuery("x"))
    assert decision.gate is None
    assert ids(decision.experts)[:2] == [expert_id(2), expert_id(0)]


def test_ab_is_decided_as_a_gate_of_fixed_weights() -> None:
    loss = Quadratic({"t": np.array([0.5, -1.0, 0.0])})
    config = LoraHubConfig(budget=80, penalty=0.0)
    artefact = LoraHubRouter.fit(config, data_of(3, samples_of("t", 2), loss), no_progress)
    router = LoraHubRouter.load(config, replace(artefact, data={**artefact.data, "weights": {"a": -1, "b": 0.5}}))
    for query in (RouteQuery("x"), RouteQuery("y", task_id="t")):
        decision = router.route(query)
        assert decision.gate == GateChoice("fixed", aggregation="ab")
        assert weights_of(decision) == {"a": -1.0, "b": 0.5}
        assert [(scored.expert_id, scored.score) for scored in decision.candidates] == [("b", 0.5), ("a", -1.0)]
    assert artefact.data["weights"][expert_id(1)] == pytest.approx(-1.0, abs=0.05)


def test_twenty_experts_are_drawn_and_five_samples_taken_evenly() -> None:
    loss = Quadratic({"t": np.zeros(20)})
    config = LoraHubConfig(budget=3)
    artefact = LoraHubRouter.fit(config, data_of(50, samples_of("t", 21), loss), no_progress)
    everyone = [expert_id(i) for i in range(50)]
    assert set(artefact.data["weights"]) == set(drawn(everyone, 20, 0))
    assert [s.answer for s in loss.calls[0][1]] == ["0", "5", "10", "15", "20"]
    other = LoraHubRouter.fit(LoraHubConfig(budget=3, seed=1), data_of(50, samples_of("t", 5), loss), no_progress)
    assert set(other.data["weights"]) == set(drawn(everyone, 20, 1)) != set(artefact.data["weights"])


def test_a_draw_is_sorted_without_repeats_and_depends_on_the_seed_alone() -> None:
    everyone = [expert_id(i) for i in range(50)]
    draws = {drawn(everyone, 20, seed) for seed in range(10)}
    assert len(draws) == 10
    assert all(list(d) == sorted(set(d)) and len(d) == 20 for d in draws)
    assert drawn(everyone[::-1], 20, 3) == drawn(everyone, 20, 3)
    assert drawn(everyone[:4], 20, 0) == tuple(everyone[:4])
    counts = np.bincount([int(e[7:10]) for seed in range(200) for e in drawn(everyone, 20, seed)], minlength=50)
    assert 45 < counts.min() <= counts.max() < 115  # 80 expected of each


# -- the learnt mix -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_experts", [2, 5, 12])
def test_the_learnt_mix_comes_near_the_best_weights_on_the_simplex(num_experts: int) -> None:
    wanted = np.random.default_rng(num_experts).dirichlet(np.full(num_experts, 0.5))
    loss = Quadratic({"t": wanted})
    config = LearnedMixConfig()
    data = LearnedMixRouter.fit(config, data_of(num_experts, samples_of("t", 4), loss), no_progress).data
    found = np.array(list(data["weights"].values()))
    assert found.sum() == pytest.approx(1)
    assert found.min() >= 0
    assert np.sum((found - wanted) ** 2) < 0.1 * np.sum((1 / num_experts - wanted) ** 2)
    assert len(loss.calls) == 100
    assert list(loss.calls[0][0].values()) == pytest.approx([1 / num_experts] * num_experts)


@pytest.mark.parametrize("budget", [1, 2, 30])
@pytest.mark.parametrize("seed", range(3))
def test_the_learnt_mix_is_the_best_that_was_tried_and_never_worse_than_uniform(budget: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    seen: dict[tuple[float, ...], float] = {}

    def noise(weights: Mapping[str, float], samples: Sequence[Sample], formula: str = "exact") -> np.ndarray:
        value = seen.setdefault(tuple(weights.values()), float(rng.uniform()))
        return np.full(len(samples), value)

    data = replace(data_of(5, samples_of("t", 2), Quadratic({})), losses=noise)
    weights = LearnedMixRouter.fit(LearnedMixConfig(budget=budget), data, no_progress).data["weights"]
    assert seen[tuple(weights.values())] == min(seen.values()) <= next(iter(seen.values()))
    assert next(iter(seen)) == (0.2,) * 5
    assert len(seen) <= budget


def test_uniform_weights_ask_nothing() -> None:
    loss = Quadratic({})
    config = LearnedMixConfig(weights="uniform")
    artefact = LearnedMixRouter.fit(config, data_of(4, samples_of("t", 4), loss), no_progress)
    decision = LearnedMixRouter.load(config, artefact).route(RouteQuery("x"))
    assert weights_of(decision) == {expert_id(i): 0.25 for i in range(4)}
    assert (decision.gate, decision.confidence) == (None, 0.25)
    assert not loss.calls


def test_each_task_gets_its_weights_and_others_those_over_all() -> None:
    loss = Quadratic({"a": np.array([1.0, 0.0, 0.0]), "b": np.array([0.0, 1.0, 0.0]), "": np.array([0.0, 0.0, 1.0])})
    samples = samples_of("b", 40) + samples_of("a", 2) + samples_of("", 2)
    config = LearnedMixConfig(budget=60, max_samples=2)
    router = LearnedMixRouter.load(config, LearnedMixRouter.fit(config, data_of(3, samples, loss), no_progress))

    def first(task: str | None) -> dict[str, float]:
        return weights_of(router.route(RouteQuery("whatever", task_id=task)))

    assert first("a")[expert_id(0)] > 0.95
    assert first("b")[expert_id(1)] > 0.95
    assert first("a") == weights_of(router.route(RouteQuery("else", task_id="a")))
    assert list(first(None).values()) == pytest.approx([1 / 3] * 3, abs=0.05)  # all tasks weigh the same
    assert first("unheard of") == first("") == first(None)
    assert {len(given) for _, given, _ in loss.calls} == {2, 6}


def test_samples_of_one_task_speak_for_all_prompts() -> None:
    loss = Quadratic({"a": np.array([1.0, 0.0])})
    artefact = LearnedMixRouter.fit(LearnedMixConfig(budget=20), data_of(2, samples_of("a", 3), loss), no_progress)
    assert artefact.data["tasks"] == {}
    assert len(loss.calls) == 20


# -- both ---------------------------------------------------------------------------------------------------------

BOTH = pytest.mark.parametrize("kind", [LoraHubRouter, LearnedMixRouter])
Kind = type[LoraHubRouter] | type[LearnedMixRouter]


@BOTH
def test_progress_is_told_after_every_evaluation(kind: Kind) -> None:
    told: list[tuple[int, int]] = []
    loss = Quadratic({"a": np.zeros(3), "b": np.zeros(3)})
    data = data_of(3, samples_of("a", 2) + samples_of("b", 2), loss)
    kind.fit(kind.config_class(budget=7), data, lambda done, total: told.append((done, total)))
    total = 21 if kind is LearnedMixRouter else 7
    assert told == [*[(done, total) for done in range(1, total + 1)], (total, total)]


@BOTH
def test_what_is_missing_is_named(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of(3, samples_of("t", 2), Quadratic({"t": np.zeros(3)}))
    for lacking in (replace(data, losses=None), replace(data, samples=())):
        with pytest.raises(NotFittable, match="engine"):
            kind.fit(kind.config_class(), lacking, no_progress)
    monkeypatch.setitem(sys.modules, "nevergrad", None)
    with pytest.raises(NotFittable, match="pip install nevergrad"):
        kind.fit(kind.config_class(), data, no_progress)


@BOTH
def test_losses_that_are_not_finite_are_avoided_or_refused(kind: Kind) -> None:
    class Broken(Quadratic):
        def __call__(self, weights: Mapping[str, float], samples: Sequence[Sample], formula: str = "") -> np.ndarray:
            found = super().__call__(weights, samples)
            return np.where(weights[expert_id(0)] > 0.4, [np.nan] * len(samples), found)

    wanted = np.array([0.9, 0.1, 0.0])
    found = kind.fit(kind.config_class(), data_of(3, samples_of("t", 2), Broken({"t": wanted})), no_progress)
    assert found.data["weights"][expert_id(0)] <= 0.4
    broken = MeanLoss(Broken({"t": wanted}), [expert_id(i) for i in range(3)], samples_of("t", 2), "ab", lambda _: None)
    assert broken(np.array([0.5, 0.0, 0.0])) == broken.lowest == 1e6
    assert broken(wanted * 0.1) == broken.lowest < 1
    assert broken.num_calls == 2

    def nothing(weights: Mapping[str, float], samples: Sequence[Sample], formula: str = "") -> np.ndarray:
        return np.full(len(samples), np.nan)

    data = replace(data_of(3, samples_of("t", 2), Quadratic({})), losses=nothing)
    with pytest.raises(NotFittable, match="finite"):
        kind.fit(kind.config_class(), data, no_progress)


@BOTH
def test_a_fit_can_be_cancelled(kind: Kind) -> None:
    class Enough(Exception):
        pass

    loss = Quadratic({"t": np.zeros(3)})

    def progress(done: int, total: int) -> None:
        if done == 4:
            raise Enough

    with pytest.raises(Enough):
        kind.fit(kind.config_class(), data_of(3, samples_of("t", 2), loss), progress)
    assert len(loss.calls) == 4


@BOTH
def test_experts_that_may_be_used_keep_their_weights(kind: Kind) -> None:
    config = kind.config_class()
    artefact = kind.fit(config, data_of(0, samples_of("t", 1), Quadratic({})), no_progress)
    weights = {"a@1": 0.2, "b@1": 0.5, "c@1": 0.3, "d@1": 0.001}
    router = kind.load(config, replace(artefact, data={**artefact.data, "weights": weights}))
    assert weights_of(router.route(RouteQuery("x"))) == {"b@1": 0.5, "c@1": 0.3, "a@1": 0.2}
    decision = router.route(RouteQuery("x", candidates=frozenset({"a@1", "c@1", "d@1"})))
    assert weights_of(decision) == {"c@1": 0.3, "a@1": 0.2}
    assert decision.confidence == pytest.approx(0.6)  # of those that may be used
    assert decision.gate == router.route(RouteQuery("x")).gate
    for allowed in (frozenset({"d@1"}), frozenset({"gone@1"}), frozenset[str]()):
        assert router.route(RouteQuery("x", candidates=allowed)).abstained


@BOTH
@pytest.mark.parametrize(
    "broken",
    [
        {"weights": None},
        {"weights": {"a": float("nan")}},
        {"weights": {"a": "much"}},
        {"weights": ["a"]},
        {"tasks": {"t": 3}},
        {"tasks": []},
        {"formula": "svd"},
        {"formula": []},
    ],
)
def test_bad_artefacts_are_refused(kind: Kind, broken: dict[str, object]) -> None:
    good = kind.fit(kind.config_class(), data_of(0, samples_of("t", 1), Quadratic({})), no_progress)
    with pytest.raises(BadArtefact):
        kind.load(kind.config_class(), replace(good, data={**good.data, **broken}))
    for key in good.data:
        with pytest.raises(BadArtefact):
            kind.load(kind.config_class(), replace(good, data={k: v for k, v in good.data.items() if k != key}))
