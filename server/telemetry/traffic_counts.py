"""What this process has counted about requests that ended: plain numbers, updated on the request's path.

The exposition (`traffic_families`) and the console's overview read the same numbers. All of them are updated and read
on the event loop, so there is no lock.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from server.telemetry.distribution import Distribution

DURATION_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TTFT_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60, 120)
TPOT_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)
CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)

Role = Literal["active", "canary"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known about a request when it ends; times in seconds, None for what did not happen.

    Attributes:
        endpoint: Path of the endpoint.
        policy: Name of the policy, or ``none``.
        expert: Name of the expert that answered, or ``base``.
        status: HTTP status.
        duration_s: Time from arrival to the answer's last byte.
        ttft_s: Time from arrival to the answer's first byte.
        input_tokens: Tokens of the prompt.
        output_tokens: Tokens of the answer.
        streamed: Whether the answer was a stream.
        trial_role: Role of the answering version while its expert has a canary.
        key: Name of the API key, or ``none``.
    """

    endpoint: str
    policy: str
    expert: str
    status: int
    duration_s: float
    ttft_s: float | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    streamed: bool = False
    trial_role: Role | None = None
    key: str = "none"


def _tokens() -> Distribution:
    return Distribution(TOKENS)


@dataclass(slots=True)
class UsageTraffic:
    """Tokens and cost of one pair of policy and expert."""

    input_tokens: Distribution = field(default_factory=_tokens)
    output_tokens: Distribution = field(default_factory=_tokens)
    cost: float = 0.0


@dataclass(slots=True)
class RouteTraffic:
    """Requests and times of one endpoint, policy and expert, and the usage of that policy and expert."""

    usage: UsageTraffic
    statuses: Counter[int] = field(default_factory=Counter)
    duration: Distribution = field(default_factory=lambda: Distribution(DURATION_SECONDS))
    ttft: Distribution = field(default_factory=lambda: Distribution(TTFT_SECONDS))
    tpot: Distribution = field(default_factory=lambda: Distribution(TPOT_SECONDS))


@dataclass(slots=True)
class KeyTraffic:
    """Requests, tokens and cost of one API key."""

    statuses: Counter[int] = field(default_factory=Counter)
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0


@dataclass(slots=True)
class DecisionTraffic:
    """Decisions of one policy.

    Attributes:
        experts: Number of decisions by expert, ``base`` for an abstention.
        num_abstentions: Decisions for no expert.
        confidence: The router's confidence in its first choice.
    """

    experts: Counter[str] = field(default_factory=Counter)
    num_abstentions: int = 0
    confidence: Distribution = field(default_factory=lambda: Distribution(CONFIDENCE))


class TrafficCounts:
    """Counts of requests and decisions by their labels, which the caller has bounded.

    Attributes:
        routes: Requests and times by endpoint, policy and expert.
        usage: Tokens and cost by policy and expert.
        keys: Requests, tokens and cost by API key.
        trials: Requests by status, for each expert that has had a canary and each role.
        decisions: Decisions by policy.
    """

    def __init__(self) -> None:
        self.routes: dict[tuple[str, str, str], RouteTraffic] = {}
        self.usage: dict[tuple[str, str], UsageTraffic] = {}
        self.keys: dict[str, KeyTraffic] = {}
        self.trials: dict[tuple[str, Role], Counter[int]] = {}
        self.decisions: dict[str, DecisionTraffic] = {}

    def record(self, outcome: Outcome, expert: str, key: str, cost: float) -> None:
        """Count a request that ended.

        Args:
            outcome: The request.
            expert: Label of its expert.
            key: Label of its API key.
            cost: Cost of the request.
        """
        place = (outcome.endpoint, outcome.policy, expert)
        route = self.routes.get(place) or self._new_route(place)
        status, input_tokens, output_tokens = outcome.status, outcome.input_tokens, outcome.output_tokens
        route.statuses[status] += 1
        route.duration.observe(outcome.duration_s)
        if outcome.streamed and outcome.ttft_s is not None:
            route.ttft.observe(outcome.ttft_s)
            if output_tokens > 1:
                route.tpot.observe((outcome.duration_s - outcome.ttft_s) / (output_tokens - 1))
        usage = route.usage
        if input_tokens:
            usage.input_tokens.observe(input_tokens)
        if output_tokens:
            usage.output_tokens.observe(output_tokens)
        usage.cost += cost
        if outcome.trial_role:
            self.trials.setdefault((expert, outcome.trial_role), Counter())[status] += 1
        by_key = self.keys.get(key)
        if by_key is None:
            by_key = self.keys[key] = KeyTraffic()
        by_key.statuses[status] += 1
        by_key.input_tokens += input_tokens
        by_key.output_tokens += output_tokens
        by_key.cost += cost

    def record_decision(self, policy: str, expert: str | None, confidence: float) -> None:
        """Count a decision; `expert` is a label, or None for an abstention."""
        decisions = self.decisions.get(policy)
        if decisions is None:
            decisions = self.decisions[policy] = DecisionTraffic()
        decisions.confidence.observe(confidence)
        if expert is None:
            decisions.num_abstentions += 1
            expert = "base"
        decisions.experts[expert] += 1

    def _new_route(self, place: tuple[str, str, str]) -> RouteTraffic:
        _, policy, expert = place
        usage = self.usage.setdefault((policy, expert), UsageTraffic())
        route = self.routes[place] = RouteTraffic(usage)
        return route
