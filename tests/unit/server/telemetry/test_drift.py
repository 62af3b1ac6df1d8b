"""Drift: profiles of traffic and fitting, their bins, and the index between them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routers.base import Decision, LibraryExpert, ScoredExpert, WeightedExpert
from server.telemetry.drift import (
    MIN_DECISIONS,
    MIN_EXPECTED,
    OTHER,
    WINDOW,
    Profile,
    RecentDecisions,
    binned,
    drift_of,
    first_choice,
    fitting_profile,
    stability_index,
)

A, B, C = "a@00000001", "b@00000002", "c@00000003"


def one(expert: str, confidence: float = 0.5) -> Decision:
    return Decision((WeightedExpert(expert),), confidence, (ScoredExpert(expert, 1.0),))


NONE = Decision((), 0.1)


def profile(num: int = 1000, **shares: float) -> Profile:
    return Profile(shares, {}, num)


# -- profiles -----------------------------------------------------------------------------------------------------


def test_the_traffic_of_a_policy() -> None:
    traffic = RecentDecisions()
    for decision in (one(A, 0.4), one(A, 0.8), one("a@ffffffff", 0.9), NONE):
        traffic.note("auto", decision)
    found = traffic.profile("auto")
    assert found.shares == pytest.approx({"a": 0.75, "base": 0.25})  # versions are one expert
    assert found.confidence == pytest.approx({"a": 0.7, "base": 0.1})
    assert found.num == 4
    assert traffic.profile("other") == Profile({}, {}, 0)
    traffic.keep_only(["other"])
    assert traffic.profile("auto").num == 0


def test_the_window_slides() -> None:
    traffic = RecentDecisions()
    for number in range(WINDOW + 500):
        traffic.note("auto", one(A if number < 500 else B))
    assert traffic.profile("auto").shares == {"b": 1.0}


def test_the_first_choice_is_the_best_candidate_that_is_used() -> None:
    mix = (WeightedExpert(A, 0.2), WeightedExpert(B, 0.7))
    assert first_choice(Decision(mix, 0.5, (ScoredExpert(A, 2), ScoredExpert(B, 1)))) == A
    assert first_choice(Decision(mix, 0.5, (ScoredExpert(C, 2),))) == B
    assert first_choice(Decision(mix, 0.5)) == B
    assert first_choice(NONE) == "base"


def test_what_a_policy_would_do_for_its_examples() -> None:
    experts = [LibraryExpert(A, examples=("1", "2", "3", "3")), LibraryExpert(B, examples=("4",)), LibraryExpert(C)]
    left_out = {"abstained": 0.2, "confidence": {A: 0.9, "base": 0.3, "gone@00000009": 0.1}}
    found = fitting_profile(experts, {"left_out": left_out})
    assert found is not None
    assert found.shares == pytest.approx({"a": 0.6, "b": 0.2, "base": 0.2})
    assert found.confidence == pytest.approx({"a": 0.9, "base": 0.3})
    assert found.num == 4
    older = fitting_profile(experts, {"left_out": None})
    assert older is not None
    assert older.shares == pytest.approx({"a": 0.75, "b": 0.25})
    assert fitting_profile([LibraryExpert(C)], {}) is None


# -- bins ---------------------------------------------------------------------------------------------------------


def test_few_decisions_have_few_bins() -> None:
    even = profile(**{f"e{number:03d}": 0.01 for number in range(100)})
    skewed = profile(**{f"e{number:03d}": 2.0 ** -(number + 1) for number in range(40)})
    for fitting, num, bins in ((even, 2000, 100), (even, 500, 25), (even, 100, 5), (skewed, 100, 3), (skewed, 2000, 7)):
        ours, theirs = binned(profile(num, e000=0.5, e099=0.5), fitting)
        assert len(ours) == len(theirs) == bins + 1, (fitting, num)
        assert sum(ours.values()) == pytest.approx(1)
        assert sum(theirs.values()) == pytest.approx(1)
        assert ours["e000"] == 0.5
        full = [share * num for name, share in theirs.items() if name != OTHER]
        assert min(full) >= MIN_EXPECTED - 1e-9


def test_unknown_experts_share_a_bin() -> None:
    ours, theirs = binned(profile(a=0.5, new=0.25, newer=0.25), profile(a=1.0))
    assert ours == {"a": 0.5, OTHER: 0.5}
    assert theirs == {"a": 1.0, OTHER: 0.0}


def test_abstentions_count_only_where_calibration_knows_them() -> None:
    traffic = profile(a=0.4, b=0.4, base=0.2)
    ours, _ = binned(traffic, profile(a=0.5, b=0.5))
    assert ours == pytest.approx({"a": 0.5, "b": 0.5, OTHER: 0.0})
    ours, _ = binned(traffic, profile(a=0.45, b=0.45, base=0.1))
    assert ours["base"] == 0.2
    assert binned(profile(base=1.0), profile(a=1.0)) == ({}, {})


# -- the index ----------------------------------------------------------------------------------------------------

weights = st.lists(st.integers(0, 1000), min_size=2, max_size=12)


@given(st.data(), weights, st.sampled_from([1e-4, 0.005]))
def test_the_index_equals_numpys(data: st.DataObject, first: list[int], floor: float) -> None:
    second = data.draw(st.lists(st.integers(0, 1000), min_size=len(first), max_size=len(first)))
    t = np.array(first) / max(sum(first), 1)
    f = np.array(second) / max(sum(second), 1)
    ours, theirs = np.maximum(t, floor), np.maximum(f, floor)
    reference = np.sum((ours - theirs) * np.log(ours / theirs))
    names = [str(number) for number in range(len(first))]
    ours_by_name, theirs_by_name = (dict(zip(names, each.tolist(), strict=True)) for each in (t, f))
    index = stability_index(ours_by_name, theirs_by_name, floor)
    assert index == pytest.approx(reference)
    assert index >= 0


@pytest.mark.parametrize("num_experts", [8, 60, 1000])
def test_like_traffic_does_not_drift_and_other_traffic_does(num_experts: int) -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(num_experts, 0.5))
    fitting = profile(**{f"e{number:03d}": float(share) for number, share in enumerate(shares)})

    def drawn(num: int, share_of: np.ndarray) -> Profile:
        counts = rng.multinomial(num, share_of)
        return profile(num, **{f"e{number:03d}": count / num for number, count in enumerate(counts)})

    for num in (MIN_DECISIONS, 500, WINDOW):
        like = [drift_of("p", drawn(num, shares), fitting).index for _ in range(20)]
        assert max(each for each in like if each is not None) < 0.2
        assert np.mean([each for each in like if each is not None]) < 0.1
    moved = np.roll(shares, num_experts // 2)
    assert drift_of("p", drawn(WINDOW, moved), fitting).verdict == "strong"


def test_verdicts() -> None:
    fitting = profile(a=0.5, b=0.5)
    assert drift_of("p", profile(a=0.5, b=0.5), fitting).verdict == "none"
    assert drift_of("p", profile(a=0.68, b=0.32), fitting).verdict == "slight"
    assert drift_of("p", profile(a=0.9, b=0.1), fitting).verdict == "strong"
    assert "too few" in drift_of("p", profile(base=1.0), fitting).verdict
    assert "at least 100" in drift_of("p", profile(MIN_DECISIONS - 1, a=1.0), fitting).verdict
    assert "not fitted to examples" in drift_of("p", profile(a=1.0), None).verdict
