"""Every metric of the gateway, with unit, labels and bounds, in one place.

Names and buckets follow the OpenTelemetry conventions for generative AI where those have a metric
(``gen_ai_server_*``, ``gen_ai_client_token_usage``), and vLLM's where it has one; what is ours alone starts
with ``moergate_``. Times are in seconds. A label never holds what a caller typed: `policy` is a configured
policy or ``none``; `expert` is ``base`` or one of the first N experts that were used, all later ones share
``other``; `key` is an API key's name (never its secret), with the same bound, or ``none`` where no key is needed; keys
of one name share its series. `endpoint` is one of our own paths.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from adapters_registry.key_limits import KeyLimits, Used
from server.settings import Price
from server.telemetry.drift import PolicyDrift, Profile

SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TTFT_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60, 120)
TPOT_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
PHASE_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.512, 2)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)
CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)


class BoundedLabel:
    """Maps names to label values: the first `limit` names keep theirs, the rest become ``other``."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def __call__(self, name: str) -> str:
        if name in self._known:
            return name
        if len(self._known) < self._limit:
            self._known.add(name)
            return name
        return "other"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known of a request when it ends; times in seconds, None for what did not happen.

    `trial_role` is the answering version's while its expert has a canary.
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
    trial_role: Literal["active", "canary"] | None = None
    key: str = "none"


@dataclass(frozen=True, slots=True)
class _Series:
    """The time series of one endpoint, policy and expert: looking labels up costs more than counting."""

    requests_by_status: Callable[[str], Counter]
    duration: Histogram
    ttft: Histogram
    tpot: Histogram
    input_tokens: Histogram
    output_tokens: Histogram
    cost: Counter


@dataclass(frozen=True, slots=True)
class _KeySeries:
    """The time series of one API key."""

    requests_by_status: Callable[[str], Counter]
    input_tokens: Counter
    output_tokens: Counter
    cost: Counter


@dataclass(slots=True)
class _BudgetShare:
    """The used part of a budget when its key was last counted; nothing once the budget's window has ended."""

    used: float = 0.0
    ends_at: float = 0.0

    def now(self) -> float:
        return self.used if time.time() < self.ends_at else 0.0


class Metrics:
    """The gateway's metrics in a registry of their own, so that two gateways can live in one process (tests do)."""

    def __init__(self, *, max_experts: int, prices: Mapping[str, Price]) -> None:
        self.registry = CollectorRegistry()
        self._expert = BoundedLabel(max_experts)
        self._drifting = BoundedLabel(max_experts)  # of its own: experts without traffic would use the others up
        self._drifts: Callable[[], Iterable[PolicyDrift]] = tuple
        self._key = BoundedLabel(max_experts)
        self._prices = prices
        self._series: dict[tuple[str, str, str], _Series] = {}
        self._key_series: dict[str, _KeySeries] = {}
        self._budget_shares: dict[tuple[str, str], _BudgetShare] = {}
        route = ("endpoint", "policy", "expert")
        self.requests = Counter(
            "moergate_requests",
            "Requests that ended, by HTTP status.",
            (*route, "status"),
            registry=self.registry,
        )
        self.errors = Counter(
            "moergate_errors",
            "Requests that failed, whether they reached an engine or not, by error code and HTTP status.",
            ("endpoint", "code", "status"),
            registry=self.registry,
        )
        self.limited = Counter(
            "moergate_requests_limited",
            "Requests that were refused for a limit of their key, by limit.",
            ("limit",),
            registry=self.registry,
        )
        self.key_requests = Counter(
            "moergate_key_requests",
            "Requests of an API key that reached an engine and ended, by HTTP status.",
            ("key", "status"),
            registry=self.registry,
        )
        self.key_tokens = Counter(
            "moergate_key_tokens",
            "Tokens of an API key, by type: input or output.",
            ("key", "type"),
            registry=self.registry,
        )
        self.key_cost = Counter(
            "moergate_key_cost",
            "Cost of an API key in the currency of the configured prices.",
            ("key",),
            registry=self.registry,
        )
        self.key_limited = Counter(
            "moergate_key_limited",
            "Requests of an API key that were refused for a limit of it, by limit.",
            ("key", "limit"),
            registry=self.registry,
        )
        self.key_budget = Gauge(
            "moergate_key_budget_used_ratio",
            "Used part of an API key's budget, by window (day or month), as of its newest request; 0 after the window.",
            ("key", "window"),
            registry=self.registry,
        )
        self.duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "From the request's arrival to its answer's last byte.",
            route,
            buckets=SECONDS,
            registry=self.registry,
        )
        self.ttft = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "From the request's arrival to the first byte of a streamed answer.",
            route,
            buckets=TTFT_SECONDS,
            registry=self.registry,
        )
        self.tpot = Histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Time per output token after the first, of streamed answers.",
            route,
            buckets=TPOT_SECONDS,
            registry=self.registry,
        )
        self.tokens = Histogram(
            "gen_ai_client_token_usage",
            "Tokens of a request, by type: input or output.",
            ("policy", "expert", "token_type"),
            buckets=TOKENS,
            registry=self.registry,
        )
        self.cost = Counter(
            "moergate_cost",
            "Cost in the currency of the configured prices.",
            ("policy", "expert"),
            registry=self.registry,
        )
        self.overhead = Histogram(
            "moergate_overhead_seconds",
            "Time that the gateway adds, by phase: auth, queue, embed, route, connect.",
            ("phase",),
            buckets=PHASE_SECONDS,
            registry=self.registry,
        )
        self.phases = {name: self.overhead.labels(name) for name in ("auth", "queue", "embed", "route", "connect")}
        self.decisions = Counter(
            "moergate_decisions",
            "Routing decisions; expert is base when the router abstained.",
            ("policy", "expert"),
            registry=self.registry,
        )
        self.abstentions = Counter(
            "moergate_abstentions", "Decisions for no expert.", ("policy",), registry=self.registry
        )
        self.confidence = Histogram(
            "moergate_decision_confidence",
            "The router's own confidence in its first choice.",
            ("policy",),
            buckets=CONFIDENCE,
            registry=self.registry,
        )
        self._decisions_of = cache(self.decisions.labels)
        self._confidence_of = cache(self.confidence.labels)
        self.engine_up = Gauge(
            "moergate_engine_up", "Whether the replica takes requests.", ("replica",), registry=self.registry
        )
        self.engine_running = Gauge(
            "moergate_engine_requests_running",
            "Requests in the replica's batch.",
            ("replica",),
            registry=self.registry,
        )
        self.engine_waiting = Gauge(
            "moergate_engine_requests_waiting",
            "Requests in the replica's queue.",
            ("replica",),
            registry=self.registry,
        )
        self.engine_experts = Gauge(
            "moergate_engine_experts_resident",
            "Experts in use in the replica now.",
            ("replica",),
            registry=self.registry,
        )
        self.engine_restarts = Counter(
            "moergate_engine_restarts", "Starts of the engine after its first.", registry=self.registry
        )
        self.active = Gauge("moergate_requests_active", "Requests being worked on.", registry=self.registry)
        self.queued = Gauge("moergate_requests_queued", "Requests waiting for a place.", registry=self.registry)
        self.experts = Gauge("moergate_library_experts", "Active experts of the library.", registry=self.registry)
        self.registry_up = Gauge(
            "moergate_registry_up",
            "Whether the library's database could be read at the last try; without it, what is known is served on.",
            registry=self.registry,
        )
        self.versions = Gauge(
            "moergate_library_versions",
            "Versions of experts that are in service, by state.",
            ("state",),
            registry=self.registry,
        )
        self.probes = Counter(
            "moergate_expert_probes",
            "Versions that were probed before they are offered, by result: passed or failed.",
            ("result",),
            registry=self.registry,
        )
        self.canary_requests = Counter(
            "moergate_canary_requests",
            "Requests to experts that have a canary, by the version that answered (role: active or canary).",
            ("expert", "role", "status"),
            registry=self.registry,
        )
        self.shadow_decisions = Counter(
            "moergate_shadow_decisions",
            "Decisions about an expert that has a version in the shadow: kept, gained or lost by it, were it offered.",
            ("policy", "expert", "change"),
            registry=self.registry,
        )
        self.policy_stale = Gauge(
            "moergate_policy_stale",
            "1 while a policy's last fit failed, or the library has changed since a costly one was fitted.",
            ("policy",),
            registry=self.registry,
        )
        self.policy_missing_experts = Gauge(
            "moergate_policy_missing_experts",
            "Experts of the library that a policy does not know yet; above 0 while the policy follows the library.",
            ("policy",),
            registry=self.registry,
        )
        self.decisions_dropped = Counter(
            "moergate_decisions_dropped",
            "Decisions that the log lost: the database was away or too slow, and the queue full.",
            registry=self.registry,
        )
        self.feedback = Counter(
            "moergate_feedback",
            "Requests that got feedback, by what answered them and the first rating: up, down or neutral.",
            ("policy", "expert", "rating"),
            registry=self.registry,
        )
        self.expert_share = Gauge(
            "moergate_expert_share",
            "Share of a policy's last decisions on this gateway by first choice, and the same if requests came like "
            "its experts' examples; of: traffic or fitting.",
            ("policy", "expert", "of"),
            registry=self.registry,
        )
        self.expert_confidence = Gauge(
            "moergate_expert_confidence",
            "Mean confidence of the same decisions.",
            ("policy", "expert", "of"),
            registry=self.registry,
        )
        self.policy_drift = Gauge(
            "moergate_policy_drift",
            "Population stability index between the shares of traffic and fitting: 0.1 is slight, 0.25 strong.",
            ("policy",),
            registry=self.registry,
        )
        self.embedder_lookups = Counter(
            "moergate_embedder_lookups",
            "Texts asked of the embedder, by result: hit or miss of its cache.",
            ("result",),
            registry=self.registry,
        )

    def labels_of(self, name: str) -> tuple[str, ...]:
        """Names of a metric's labels; for the documentation."""
        for metric in vars(self).values():
            if isinstance(metric, MetricWrapperBase) and metric._name == name:
                return tuple(metric._labelnames)
        return ()

    def record_decision(self, policy: str, expert: str | None, confidence: float) -> None:
        """Count a decision; `expert` is a name, or None for an abstention."""
        self._decisions_of(policy, "base" if expert is None else self._expert(expert)).inc()
        self._confidence_of(policy).observe(confidence)
        if expert is None:
            self.abstentions.labels(policy).inc()

    def forget_policy(self, name: str) -> None:
        """Remove the series that describe the state of a removed policy."""
        for gauge in (self.policy_stale, self.policy_missing_experts):
            with suppress(KeyError):
                gauge.remove(name)

    def record_shadow(self, policy: str, expert: str, change: str) -> None:
        """Count a decision that was made in the shadow, too, and concerns an expert in it."""
        self.shadow_decisions.labels(policy, self._expert(expert), change).inc()

    def record_error(self, endpoint: str, code: str, status: int) -> None:
        """Count a request that failed, at whatever step."""
        self.errors.labels(endpoint, code, str(status)).inc()

    def record_limited(self, key: str, limit: str) -> None:
        """Count a request that was refused for a limit of the key of this name."""
        self.limited.labels(limit).inc()
        self.key_limited.labels(self._key(key), limit).inc()

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
            self.key_budget.labels(label, window.period).set_function(share.now)
        share.used, share.ends_at = used.cost / budget, window.ends_at

    def show_load(self, active: Callable[[], float], queued: Callable[[], float]) -> None:
        """Read the numbers of running and waiting requests at each scrape."""
        self.active.set_function(active)
        self.queued.set_function(queued)

    def record_feedback(self, policy: str | None, expert: str, rating: float) -> None:
        """Count a request's first rating, from -1 to 1."""
        kind = "up" if rating > 0 else "down" if rating < 0 else "neutral"
        self.feedback.labels(policy or "none", expert if expert == "base" else self._expert(expert), kind).inc()

    def show_drift(self, found: Callable[[], Iterable[PolicyDrift]]) -> None:
        """Read how policies drift at each scrape."""
        self._drifts = found

    def exposition(self) -> bytes:
        """All metrics as Prometheus reads them."""
        for gauge in (self.expert_share, self.expert_confidence, self.policy_drift):
            gauge.clear()
        for drift in self._drifts():
            if drift.index is not None:
                self.policy_drift.labels(drift.policy).set(drift.index)
            traffic, fitting = drift.traffic, drift.fitting
            if traffic.num and fitting is not None:  # also experts that nobody wants
                traffic = replace(traffic, shares=dict.fromkeys(fitting.shares, 0.0) | dict(traffic.shares))
            self._show_profile(drift.policy, "traffic", traffic)
            if fitting is not None:
                self._show_profile(drift.policy, "fitting", fitting)
        return generate_latest(self.registry)

    def _show_profile(self, policy: str, of: str, profile: Profile) -> None:
        sums: dict[
            str, tuple[float, float, float]
        ] = {}  # by label: share, share with a known confidence, their product
        for name, share in sorted(profile.shares.items(), key=lambda item: -item[1]):
            label = name if name == "base" else self._drifting(name)
            known = share if name in profile.confidence else 0.0
            total, weight, product = sums.get(label, (0.0, 0.0, 0.0))
            sums[label] = (total + share, weight + known, product + known * profile.confidence.get(name, 0.0))
        for label, (total, weight, product) in sums.items():
            self.expert_share.labels(policy, label, of).set(total)
            if weight:
                self.expert_confidence.labels(policy, label, of).set(product / weight)

    def record(self, outcome: Outcome) -> None:
        """Count a request that reached an engine, when it ends."""
        expert = outcome.expert if outcome.expert == "base" else self._expert(outcome.expert)
        series = self._series_of(outcome.endpoint, outcome.policy, expert)
        series.requests_by_status(str(outcome.status)).inc()
        series.duration.observe(outcome.duration_s)
        if outcome.streamed and outcome.ttft_s is not None:
            series.ttft.observe(outcome.ttft_s)
            if outcome.output_tokens > 1:
                series.tpot.observe((outcome.duration_s - outcome.ttft_s) / (outcome.output_tokens - 1))
        if outcome.input_tokens:
            series.input_tokens.observe(outcome.input_tokens)
        if outcome.output_tokens:
            series.output_tokens.observe(outcome.output_tokens)
        cost = self.cost_of(outcome)
        if cost:
            series.cost.inc(cost)
        if outcome.trial_role:
            self.canary_requests.labels(expert, outcome.trial_role, str(outcome.status)).inc()
        self._record_key(outcome, cost)

    def _record_key(self, outcome: Outcome, cost: float) -> None:
        label = self._key(outcome.key)
        series = self._key_series.get(label)
        if series is None:
            series = self._key_series[label] = _KeySeries(
                requests_by_status=cache(partial(self.key_requests.labels, label)),
                input_tokens=self.key_tokens.labels(label, "input"),
                output_tokens=self.key_tokens.labels(label, "output"),
                cost=self.key_cost.labels(label),
            )
        series.requests_by_status(str(outcome.status)).inc()
        series.input_tokens.inc(outcome.input_tokens)
        series.output_tokens.inc(outcome.output_tokens)
        if cost:
            series.cost.inc(cost)

    def _series_of(self, endpoint: str, policy: str, expert: str) -> _Series:
        key = (endpoint, policy, expert)
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = _Series(
                requests_by_status=cache(partial(self.requests.labels, *key)),
                duration=self.duration.labels(*key),
                ttft=self.ttft.labels(*key),
                tpot=self.tpot.labels(*key),
                input_tokens=self.tokens.labels(policy, expert, "input"),
                output_tokens=self.tokens.labels(policy, expert, "output"),
                cost=self.cost.labels(policy, expert),
            )
        return series

    def cost_of(self, outcome: Outcome) -> float:
        """What a request costs by the configured prices."""
        price = self._prices.get(outcome.expert) or (None if outcome.expert == "base" else self._prices.get("expert"))
        return (outcome.input_tokens * price.input + outcome.output_tokens * price.output) / 1e6 if price else 0.0
