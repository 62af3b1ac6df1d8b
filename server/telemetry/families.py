"""Every metric, declared as data: name, help, labels and buckets.

The metrics of requests that ended and of decisions are constants, filled from plain counts at each scrape
(`traffic_families`). All others are fields of five small classes, one for each part of the gateway that sets them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from server.telemetry.traffic_counts import CONFIDENCE, DURATION_SECONDS, TOKENS, TPOT_SECONDS, TTFT_SECONDS

PHASES = ("auth", "queue", "embed", "route", "connect")
PHASE_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.512, 2)

Group = TypeVar("Group")


@dataclass(frozen=True, slots=True)
class Family:
    """A metric with all its time series.

    Attributes:
        name: Name without the suffix ``_total`` of counters.
        help: What it means, for Prometheus and the reference page.
        labels: Names of its labels.
        buckets: Upper bounds of a histogram's buckets.
    """

    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_ROUTE = ("endpoint", "policy", "expert")

REQUESTS = Family("moergate_requests", "Requests that ended, by HTTP status.", (*_ROUTE, "status"))
DURATION = Family(
    "gen_ai_server_request_duration_seconds",
    "Time from the request's arrival to the last byte of its answer.",
    _ROUTE,
    DURATION_SECONDS,
)
TTFT = Family(
    "gen_ai_server_time_to_first_token_seconds",
    "Time from the request's arrival to the first byte of a streamed answer.",
    _ROUTE,
    TTFT_SECONDS,
)
TPOT = Family(
    "gen_ai_server_time_per_output_token_seconds",
    "Time per output token after the first, of streamed answers.",
    _ROUTE,
    TPOT_SECONDS,
)
TOKEN_USAGE = Family(
    "gen_ai_client_token_usage",
    "Tokens of a request, by type: input or output.",
    ("policy", "expert", "token_type"),
    TOKENS,
)
COST = Family("moergate_cost", "Cost in the currency of the configured prices.", ("policy", "expert"))
KEY_REQUESTS = Family(
    "moergate_key_requests",
    "Requests of an API key that reached an engine and ended, by HTTP status.",
    ("key", "status"),
)
KEY_TOKENS = Family("moergate_key_tokens", "Tokens of an API key, by type: input or output.", ("key", "type"))
KEY_COST = Family("moergate_key_cost", "Cost of an API key in the currency of the configured prices.", ("key",))
CANARY_REQUESTS = Family(
    "moergate_canary_requests",
    "Requests to experts that have a canary, by the version that answered (role: active or canary).",
    ("expert", "role", "status"),
)
DECISIONS = Family(
    "moergate_decisions", "Routing decisions; expert is base when the router abstained.", ("policy", "expert")
)
ABSTENTIONS = Family("moergate_abstentions", "Routing decisions for no expert.", ("policy",))
DECISION_CONFIDENCE = Family(
    "moergate_decision_confidence", "The router's confidence in its first choice.", ("policy",), CONFIDENCE
)

TRAFFIC_FAMILIES = (
    REQUESTS,
    DURATION,
    TTFT,
    TPOT,
    TOKEN_USAGE,
    COST,
    KEY_REQUESTS,
    KEY_TOKENS,
    KEY_COST,
    CANARY_REQUESTS,
    DECISIONS,
    ABSTENTIONS,
    DECISION_CONFIDENCE,
)


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """Requests that are in progress, refused or failed, and the time that the gateway adds to them."""

    errors: Annotated[
        Counter,
        Family(
            "moergate_errors",
            "Requests that failed, before or after they reached an engine, by error code and HTTP status.",
            ("endpoint", "code", "status"),
        ),
    ]
    limited: Annotated[
        Counter,
        Family("moergate_requests_limited", "Requests refused because of a limit of their key, by limit.", ("limit",)),
    ]
    overhead: Annotated[
        Histogram,
        Family(
            "moergate_overhead_seconds",
            "Time that the gateway adds, by phase: auth, queue, embed, route, connect.",
            ("phase",),
            PHASE_SECONDS,
        ),
    ]
    active: Annotated[Gauge, Family("moergate_requests_active", "Requests in progress.")]
    queued: Annotated[Gauge, Family("moergate_requests_queued", "Requests that wait for a slot.")]


@dataclass(frozen=True, slots=True)
class KeyMetrics:
    """Limits of API keys."""

    limited: Annotated[
        Counter,
        Family(
            "moergate_key_limited",
            "Requests of an API key refused because of one of its limits, by limit.",
            ("key", "limit"),
        ),
    ]
    budget: Annotated[
        Gauge,
        Family(
            "moergate_key_budget_used_ratio",
            "Used part of an API key's budget at its newest request, by window (day or month); 0 once the window has "
            "ended.",
            ("key", "window"),
        ),
    ]


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """The replicas of the engine."""

    up: Annotated[Gauge, Family("moergate_engine_up", "Whether the replica accepts requests.", ("replica",))]
    running: Annotated[
        Gauge, Family("moergate_engine_requests_running", "Requests in the replica's batch.", ("replica",))
    ]
    waiting: Annotated[
        Gauge, Family("moergate_engine_requests_waiting", "Requests in the replica's queue.", ("replica",))
    ]
    experts: Annotated[
        Gauge, Family("moergate_engine_experts_resident", "Experts that the replica holds in its slots.", ("replica",))
    ]
    restarts: Annotated[Counter, Family("moergate_engine_restarts", "Starts of the engine after the first.")]


@dataclass(frozen=True, slots=True)
class LibraryMetrics:
    """The library of experts and its database."""

    experts: Annotated[Gauge, Family("moergate_library_experts", "Active experts of the library.")]
    versions: Annotated[
        Gauge, Family("moergate_library_versions", "Versions of experts that are in service, by state.", ("state",))
    ]
    registry_up: Annotated[
        Gauge,
        Family(
            "moergate_registry_up",
            "Whether the last read of the library's database succeeded; while it is down, the last snapshot is still "
            "served.",
        ),
    ]
    probes: Annotated[
        Counter,
        Family(
            "moergate_expert_probes",
            "Versions that were probed before being offered, by result: passed or failed.",
            ("result",),
        ),
    ]


@dataclass(frozen=True, slots=True)
class PolicyMetrics:
    """Policies: their fits, their traffic compared with what they were fitted to, the decision log and feedback."""

    stale: Annotated[
        Gauge,
        Family(
            "moergate_policy_stale",
            "1 while a policy's last fit has failed, or the library has changed since an expensive policy was fitted.",
            ("policy",),
        ),
    ]
    missing_experts: Annotated[
        Gauge,
        Family(
            "moergate_policy_missing_experts",
            "Experts of the library that a policy does not know yet; above 0 while the policy follows the library.",
            ("policy",),
        ),
    ]
    shadow_decisions: Annotated[
        Counter,
        Family(
            "moergate_shadow_decisions",
            "Decisions that concern an expert with a shadow version, by what offering that version would change: kept, "
            "gained or lost.",
            ("policy", "expert", "change"),
        ),
    ]
    decisions_dropped: Annotated[
        Counter,
        Family(
            "moergate_decisions_dropped",
            "Decisions that the log lost because its queue was full while the database was down or too slow.",
        ),
    ]
    feedback: Annotated[
        Counter,
        Family(
            "moergate_feedback",
            "Requests with feedback, by policy and expert, and by their first rating: up, down or neutral.",
            ("policy", "expert", "rating"),
        ),
    ]
    expert_share: Annotated[
        Gauge,
        Family(
            "moergate_expert_share",
            "Share of a policy's decisions by first choice; of: traffic (its latest decisions on this gateway) or "
            "fitting (expected if requests came like its experts' examples).",
            ("policy", "expert", "of"),
        ),
    ]
    expert_confidence: Annotated[
        Gauge,
        Family(
            "moergate_expert_confidence",
            "Mean confidence of the decisions behind moergate_expert_share.",
            ("policy", "expert", "of"),
        ),
    ]
    drift: Annotated[
        Gauge,
        Family(
            "moergate_policy_drift",
            "Population stability index between the shares of traffic and fitting: 0.1 is slight, 0.25 strong.",
            ("policy",),
        ),
    ]
    embedder_lookups: Annotated[
        Counter,
        Family("moergate_embedder_lookups", "Lookups in the embedder's cache, by result: hit or miss.", ("result",)),
    ]


GROUPS = (RequestMetrics, KeyMetrics, EngineMetrics, LibraryMetrics, PolicyMetrics)


def register(group: type[Group], registry: CollectorRegistry) -> Group:
    """Create the metrics that a class declares, in a registry."""
    return group(**{field: _created(kind, family, registry) for field, kind, family in _declared(group)})


def all_families() -> list[Family]:
    """Every metric of the gateway."""
    return [*TRAFFIC_FAMILIES, *(family for group in GROUPS for _, _, family in _declared(group))]


def _declared(group: type[Any]) -> Iterator[tuple[str, Any, Family]]:
    for field, hint in get_type_hints(group, include_extras=True).items():
        kind, family = get_args(hint)
        yield field, kind, family


def _created(kind: Any, family: Family, registry: CollectorRegistry) -> Any:
    options = {"buckets": family.buckets} if family.buckets else {}
    return kind(family.name, family.help, family.labels, registry=registry, **options)
