"""Drift: whether a policy's traffic still looks like what the policy was fitted to.

*Fitting* is how often the policy would choose each expert if requests came like its examples: an expert's share of all
examples, less the share for which the policy chose no expert when examples were left out for calibration
(`routers.families.calibration.LeftOut`). *Traffic* is the first choice of the policy's last `WINDOW` decisions on this
gateway. The population stability index compares both, over bins b of the shares t of traffic and f of fitting:

    PSI = Σ_b (t_b − f_b) · ln(t_b / f_b)          shares are at least 1 / 2n, half a decision of n

0.1 is a slight difference, 0.25 a strong one. By chance alone, n decisions over B bins give about (B − 1) / n.
Therefore bins are filled with experts in the order of their number of examples, and a bin is full when at least
`MIN_EXPECTED` decisions are expected for it. Each larger expert has a separate bin, several smaller experts share one,
and the last bin is for the remaining and the unknown experts. That keeps the noise at about 0.05.
``base``, no expert, has a separate bin if calibration has measured how often it happens; otherwise it is left out.

Requests need not come like examples: if every expert has the same number of examples and one expert is popular, the
index is large from the first day. The signal is a change of the index.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from routers.base import BASE, Decision, LibraryExpert, name_of
from routers.families.calibration import LeftOut

WINDOW = 2000
MAX_POLICIES = 256
MIN_DECISIONS = 100
"""Minimum number of decisions for an index."""

MIN_EXPECTED = 20
OTHER = "other experts"
SLIGHT, STRONG = 0.1, 0.25


@dataclass(frozen=True, slots=True)
class Profile:
    """How often a policy chooses each expert.

    Attributes:
        shares: Shares by expert name, ``base`` for no expert; they sum to one.
        confidence: Mean confidence of these choices, by expert name, where it is known.
        num: Number of decisions or examples behind the shares.
    """

    shares: Mapping[str, float]
    confidence: Mapping[str, float]
    num: int


@dataclass(frozen=True, slots=True)
class PolicyDrift:
    """Both profiles of a policy; `index` is None if one is missing or there were too few decisions."""

    policy: str
    traffic: Profile
    fitting: Profile | None
    index: float | None

    @property
    def verdict(self) -> str:
        """The index in a word, or why there is none."""
        if self.fitting is None:
            return "unknown: this method is not fitted to examples"
        if self.traffic.num < MIN_DECISIONS:
            return f"unknown: {self.traffic.num} decisions, at least {MIN_DECISIONS} are needed"
        if self.index is None:
            return "unknown: too few decisions for an expert to compare"
        return "strong" if self.index >= STRONG else "slight" if self.index >= SLIGHT else "none"


class RecentDecisions:
    """The latest decisions of each policy on this gateway."""

    def __init__(self) -> None:
        self._windows: dict[str, deque[tuple[str, float]]] = {}

    def note(self, policy: str, decision: Decision) -> None:
        """Remember a decision; on the hot path."""
        window = self._windows.get(policy)
        if window is None:
            window = self._windows[policy] = deque(maxlen=WINDOW)
            if len(self._windows) > MAX_POLICIES:
                del self._windows[next(iter(self._windows))]
        window.append((first_choice(decision), decision.confidence))

    def keep_only(self, policies: Iterable[str]) -> None:
        """Forget policies that no longer exist."""
        for gone in self._windows.keys() - set(policies):
            del self._windows[gone]

    def profile(self, policy: str) -> Profile:
        """What a policy has chosen recently."""
        counts: Counter[str] = Counter()
        sums: defaultdict[str, float] = defaultdict(float)
        for expert, confidence in self._windows.get(policy, ()):
            counts[expert] += 1
            sums[expert] += confidence
        num = counts.total()
        return _by_name(
            {expert: count / num for expert, count in counts.items()},
            {expert: sums[expert] / count for expert, count in counts.items()},
            num,
        )


def first_choice(decision: Decision) -> str:
    """The best of the experts that a decision uses; ``base`` if it uses none."""
    if not decision.experts:
        return BASE
    best = decision.candidates[0].expert_id if decision.candidates else ""
    if any(expert.expert_id == best for expert in decision.experts):
        return best
    return max(decision.experts, key=lambda expert: expert.weight).expert_id


def fitting_profile(experts: Iterable[LibraryExpert], data: Mapping[str, Any]) -> Profile | None:
    """How a policy would choose for prompts like its experts' examples.

    Args:
        experts: The experts that the policy was fitted to.
        data: The data of its artefact.
    """
    counts = {expert.expert_id: len(set(expert.examples)) for expert in experts if expert.examples}
    num = sum(counts.values())
    if not num:
        return None
    left_out = LeftOut.load(data)
    abstained = left_out.abstained if left_out else 0.0
    shares = {expert: (1 - abstained) * count / num for expert, count in counts.items()}
    if left_out:
        shares[BASE] = abstained
    known = left_out.confidence if left_out else {}
    return _by_name(shares, {expert: known[expert] for expert in shares if expert in known}, num)


def drift_of(policy: str, traffic: Profile, fitting: Profile | None) -> PolicyDrift:
    """Both profiles and the index that compares them."""
    index = None
    if fitting is not None and traffic.num >= MIN_DECISIONS:
        ours, theirs = binned(traffic, fitting)
        if len(ours) > 1:
            index = stability_index(ours, theirs, 1 / (2 * traffic.num))
    return PolicyDrift(policy, traffic, fitting, index)


class Fitted(Protocol):
    """A policy with a fitting profile."""

    @property
    def fitting(self) -> Profile | None:
        """How the policy would choose for prompts like its examples."""
        ...


def drifts(recent: RecentDecisions, policies: Mapping[str, Fitted]) -> list[PolicyDrift]:
    """The drift of each policy; other policies are forgotten."""
    recent.keep_only(policies)
    return [drift_of(name, recent.profile(name), policy.fitting) for name, policy in policies.items()]


def binned(traffic: Profile, fitting: Profile) -> tuple[dict[str, float], dict[str, float]]:
    """Both profiles' shares in the same bins, traffic first; empty if one profile has no shares left.

    A bin has the name of one of its experts.
    """
    knows_base = BASE in fitting.shares
    num = traffic.num if knows_base else round(traffic.num * (1 - traffic.shares.get(BASE, 0.0)))
    bin_of = _bins(fitting, num)
    found: list[dict[str, float]] = []
    for profile in (traffic, fitting):
        shares = dict.fromkeys((*bin_of.values(), OTHER), 0.0)
        for name, share in profile.shares.items():
            if knows_base or name != BASE:
                shares[bin_of.get(name, OTHER)] += share
        total = sum(shares.values())
        if not total:
            return {}, {}
        found.append({name: share / total for name, share in shares.items()})
    return found[0], found[1]


def _bins(fitting: Profile, num: int) -> dict[str, str]:
    """The bin of each expert, except for those of the last bin."""
    bin_of = {BASE: BASE} if BASE in fitting.shares else {}
    members: list[str] = []
    expected = 0.0
    for name in sorted(fitting.shares.keys() - {BASE}, key=lambda name: (-fitting.shares[name], name)):
        members.append(name)
        expected += fitting.shares[name] * num
        if expected >= MIN_EXPECTED:
            bin_of |= dict.fromkeys(members, members[0])
            members, expected = [], 0.0
    return bin_of


def stability_index(traffic: Mapping[str, float], fitting: Mapping[str, float], floor: float) -> float:
    """The population stability index of shares over the same bins, with shares of at least `floor`."""
    index = 0.0
    for name, share in traffic.items():
        ours, theirs = max(share, floor), max(fitting[name], floor)
        index += (ours - theirs) * math.log(ours / theirs)
    return index


def _by_name(shares: Mapping[str, float], confidence: Mapping[str, float], num: int) -> Profile:
    """A profile by expert name from shares by expert id; versions of an expert are added up."""
    summed: dict[str, float] = {}
    weights: dict[str, float] = {}
    sums: dict[str, float] = {}
    for expert, share in shares.items():
        name = name_of(expert)
        summed[name] = summed.get(name, 0.0) + share
        if expert in confidence and share:
            weights[name] = weights.get(name, 0.0) + share
            sums[name] = sums.get(name, 0.0) + share * confidence[expert]
    return Profile(summed, {name: sums[name] / weight for name, weight in weights.items()}, num)
