"""Every metric of the gateway, with unit, labels and bounds.

Names and buckets follow the OpenTelemetry conventions for generative AI where those define a metric
(``gen_ai_server_*``, ``gen_ai_client_token_usage``), and vLLM's where vLLM has one; the gateway's own metrics start
with ``moergate_``. Times are in seconds. A label never holds what a caller typed: `policy` is a configured
policy or ``none``; `expert` is ``base`` or one of the first N experts that were used, and all later experts share
``other``; `key` is an API key's name (never its secret), with the same bound, or ``none`` where no key is needed; keys
with the same name share its series. `endpoint` is one of the gateway's own paths.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from prometheus_client import CollectorRegistry, generate_latest

from adapters_registry.key_limits import KeyLimits, Used
from server.telemetry.drift import PolicyDrift, Profile
from server.telemetry.families import (
    PHASES,
    EngineMetrics,
    KeyMetrics,
    LibraryMetrics,
    PolicyMetrics,
    RequestMetrics,
    register,
)
from server.telemetry.labels import BoundedLabel
from server.telemetry.prices import Price, cost_of
from server.telemetry.traffic_counts import Outcome, TrafficCounts
from server.telemetry.traffic_families import TrafficCollector


@dataclass(slots=True)
class _BudgetShare:
    """The used part of a budget when its key was last counted; 0 once the budget's window has ended."""

    used: float = 0.0
    ends_at: float = 0.0

    def now(self) -> float:
        return self.used if time.time() < self.ends_at else 0.0


class Metrics:
    """The gateway's metrics in a separate registry, so that two gateways can live in one process, as in tests.

    Attributes:
        registry: What Prometheus scrapes.
        traffic: Counts of requests that ended and of decisions, as plain numbers.
        requests, keys, engine, library, policies: The other metrics.
        phases: The histogram of the time that the gateway adds, by phase.
    """

    def __init__(self, *, max_experts: int, prices: Mapping[str, Price]) -> None:
        self.registry = CollectorRegistry()
        self.traffic = TrafficCounts()
        self.registry.register(TrafficCollector(self.traffic))
        self.requests = register(RequestMetrics, self.registry)
        self.keys = register(KeyMetrics, self.registry)
        self.engine = register(EngineMetrics, self.registry)
        self.library = register(LibraryMetrics, self.registry)
        self.policies = register(PolicyMetrics, self.registry)
        self.phases = {name: self.requests.overhead.labels(name) for name in PHASES}
        self._lookups = {hit: self.policies.embedder_lookups.labels("hit" if hit else "miss") for hit in (True, False)}
        self._prices = prices
        self._expert = BoundedLabel(max_experts)
        self._drifting = BoundedLabel(max_experts)  # separate: experts without traffic would use up the other bound
        self._key = BoundedLabel(max_experts)
        self._drifts: Callable[[], Iterable[PolicyDrift]] = tuple
        self._budget_shares: dict[tuple[str, str], _BudgetShare] = {}

    def record(self, outcome: Outcome) -> None:
        """Count a request that reached an engine, when it ends."""
        expert = outcome.expert if outcome.expert == "base" else self._expert(outcome.expert)
        self.traffic.record(outcome, expert, self._key(outcome.key), self.cost_of(outcome))

    def cost_of(self, outcome: Outcome) -> float:
        """Cost of a request by the configured prices."""
        return cost_of(self._prices, outcome.expert, outcome.input_tokens, outcome.output_tokens)

    def record_decision(self, policy: str, expert: str | None, confidence: float) -> None:
        """Count a decision; `expert` is a name, or None for an abstention."""
        self.traffic.record_decision(policy, None if expert is None else self._expert(expert), confidence)

    def forget_policy(self, name: str) -> None:
        """Remove the series that describe the state of a removed policy."""
        for gauge in (self.policies.stale, self.policies.missing_experts):
            with suppress(KeyError):
                gauge.remove(name)

    def record_shadow(self, policy: str, expert: str, change: str) -> None:
        """Count a decision that concerns an expert with a shadow version."""
        self.policies.shadow_decisions.labels(policy, self._expert(expert), change).inc()

    def record_error(self, endpoint: str, code: str, status: int) -> None:
        """Count a request that failed, at whatever step."""
        self.requests.errors.labels(endpoint, code, str(status)).inc()

    def record_limited(self, key: str, limit: str) -> None:
        """Count a request that was refused because of a limit of the key with this name."""
        self.requests.limited.labels(limit).inc()
        self.keys.limited.labels(self._key(key), limit).inc()

    def record_lookup(self, *, hit: bool) -> None:
        """Count a lookup in the embedder's cache."""
        self._lookups[hit].inc()

    def record_feedback(self, policy: str | None, expert: str, rating: float) -> None:
        """Count a request's first rating, from -1 to 1."""
        kind = "up" if rating > 0 else "down" if rating < 0 else "neutral"
        label = expert if expert == "base" else self._expert(expert)
        self.policies.feedback.labels(policy or "none", label, kind).inc()

    def show_budget(self, key: str, limits: KeyLimits, used: Used) -> None:
        """Show the used part of a key's budget for this window, if it has one; keys behind ``other`` are left out."""
        window = used.window
        budget = {"day": limits.budget_per_day, "month": limits.budget_per_month}.get(window.period)
        label = self._key(key)
        if budget is None or (label == "other" and key != "other"):
            return
        share = self._budget_shares.get((label, window.period))
        if share is None:
            share = self._budget_shares[label, window.period] = _BudgetShare()
            self.keys.budget.labels(label, window.period).set_function(share.now)
        share.used, share.ends_at = used.cost / budget, window.ends_at

    def show_load(self, active: Callable[[], float], queued: Callable[[], float]) -> None:
        """Read the numbers of running and waiting requests at each scrape."""
        self.requests.active.set_function(active)
        self.requests.queued.set_function(queued)

    def show_drift(self, found: Callable[[], Iterable[PolicyDrift]]) -> None:
        """Read the policies' drift at each scrape."""
        self._drifts = found

    def exposition(self) -> bytes:
        """All metrics in Prometheus's text format."""
        policies = self.policies
        for gauge in (policies.expert_share, policies.expert_confidence, policies.drift):
            gauge.clear()
        for drift in self._drifts():
            if drift.index is not None:
                policies.drift.labels(drift.policy).set(drift.index)
            traffic, fitting = drift.traffic, drift.fitting
            if traffic.num and fitting is not None:  # show experts without traffic, too
                traffic = replace(traffic, shares=dict.fromkeys(fitting.shares, 0.0) | dict(traffic.shares))
            self._show_profile(drift.policy, "traffic", traffic)
            if fitting is not None:
                self._show_profile(drift.policy, "fitting", fitting)
        return generate_latest(self.registry)

    def _show_profile(self, policy: str, of: str, profile: Profile) -> None:
        # By label: share, share with a known confidence, and the product of the latter with its confidence.
        sums: dict[str, tuple[float, float, float]] = {}
        for name, share in sorted(profile.shares.items(), key=lambda item: -item[1]):
            label = name if name == "base" else self._drifting(name)
            known = share if name in profile.confidence else 0.0
            total, weight, product = sums.get(label, (0.0, 0.0, 0.0))
            sums[label] = (total + share, weight + known, product + known * profile.confidence.get(name, 0.0))
        for label, (total, weight, product) in sums.items():
            self.policies.expert_share.labels(policy, label, of).set(total)
            if weight:
                self.policies.expert_confidence.labels(policy, label, of).set(product / weight)
