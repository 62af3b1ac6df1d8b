"""What an operator sees at a glance: experts with their traffic, and the engine's replicas. Reads; changes nothing.

Traffic is read from this process's own metrics, so it counts from the gateway's start, and per name: versions of an
expert share it, and so do all experts beyond the setting metrics_experts. Of versions with a canary, the canary's part
is counted apart. All functions are pure or block shortly; none is on a request's path.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.metrics import MetricWrapperBase

from adapters_registry.records import AdapterRecord
from server.engine.pool import EnginePool, Replica
from server.telemetry.metrics import Metrics

CALLER_LEFT = "499"
"""Status of requests whose caller hung up: no error of ours, nor of the engine."""


FRESH_S = 1.0


@dataclass(slots=True)
class Traffic:
    """What one label of the metrics has seen; times in seconds, None where nothing was observed.

    Attributes:
        requests, errors: Requests that ended, and those of them that failed.
        duration, ttft: Cumulative counts by upper bound, over all endpoints and policies.
        tokens: By type, input or output.
        cost: In the currency of the configured prices.
    """

    requests: int = 0
    errors: int = 0
    duration: Counter[float] = field(default_factory=Counter)
    ttft: Counter[float] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    cost: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """For the admin API."""
        return {
            "requests": self.requests,
            "errors": self.errors,
            "p50_s": quantile(0.5, self.duration),
            "p95_s": quantile(0.95, self.duration),
            "ttft_p50_s": quantile(0.5, self.ttft),
            "ttft_p95_s": quantile(0.95, self.ttft),
            "input_tokens": self.tokens["input"],
            "output_tokens": self.tokens["output"],
            "cost": round(self.cost, 6),
        }


def quantile(q: float, buckets: Mapping[float, float]) -> float | None:
    """The q-quantile of a histogram, linear within its bucket, as Prometheus computes it.

    Args:
        q: Between 0 and 1.
        buckets: Cumulative counts by upper bound, the last of which is infinite.

    Returns:
        None if nothing was observed; the largest finite bound if the quantile lies beyond it.
    """
    bounds = sorted(buckets)
    if not bounds or not buckets[bounds[-1]]:
        return None
    rank = q * buckets[bounds[-1]]
    low, below = 0.0, 0.0
    for bound in bounds:
        count = buckets[bound]
        if count >= rank:
            if math.isinf(bound):
                return low
            inside = count - below
            return round(low + (bound - low) * ((rank - below) / inside if inside else 1.0), 6)
        low, below = bound, count
    return low


def traffic_by_expert(metrics: Metrics) -> dict[str, Traffic]:
    """Traffic by label: names of experts, ``base``, and ``other``."""
    found: dict[str, Traffic] = defaultdict(Traffic)
    for labels, value in _samples(metrics.requests, "_total"):
        traffic = found[labels["expert"]]
        traffic.requests += int(value)
        if labels["status"] >= "400" and labels["status"] != CALLER_LEFT:
            traffic.errors += int(value)
    for labels, value in _samples(metrics.duration, "_bucket"):
        found[labels["expert"]].duration[float(labels["le"])] += int(value)
    for labels, value in _samples(metrics.ttft, "_bucket"):
        found[labels["expert"]].ttft[float(labels["le"])] += int(value)
    for labels, value in _samples(metrics.tokens, "_sum"):
        found[labels["expert"]].tokens[labels["token_type"]] += int(value)
    for labels, value in _samples(metrics.cost, "_total"):
        found[labels["expert"]].cost += value
    return dict(found)


def canary_counts(metrics: Metrics) -> dict[tuple[str, str], dict[str, int]]:
    """Requests and errors by expert and role, of experts that have or had a canary."""
    found: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: {"requests": 0, "errors": 0})
    for labels, value in _samples(metrics.canary_requests, "_total"):
        counts = found[labels["expert"], labels["role"]]
        counts["requests"] += int(value)
        if labels["status"] >= "400" and labels["status"] != CALLER_LEFT:
            counts["errors"] += int(value)
    return dict(found)


def decisions_by_policy(metrics: Metrics) -> dict[str, dict[str, int]]:
    """Decisions and abstentions by policy."""
    found: dict[str, dict[str, int]] = defaultdict(lambda: {"decisions": 0, "abstentions": 0})
    for labels, value in _samples(metrics.decisions, "_total"):
        found[labels["policy"]]["decisions"] += int(value)
    for labels, value in _samples(metrics.abstentions, "_total"):
        found[labels["policy"]]["abstentions"] += int(value)
    return dict(found)


@dataclass(frozen=True, slots=True)
class Counts:
    """What the metrics hold, at one moment.

    Attributes:
        traffic: By name of an expert, ``base`` and ``other``.
        trials: Requests and errors by expert and role.
        policies: Decisions and abstentions by policy.
    """

    traffic: Mapping[str, Traffic]
    trials: Mapping[tuple[str, str], dict[str, int]]
    policies: Mapping[str, dict[str, int]]


def count_all(metrics: Metrics) -> Counts:
    """Read the metrics; blocks for some tenths of a second where hundreds of pairs of expert and policy are counted."""
    return Counts(traffic_by_expert(metrics), canary_counts(metrics), decisions_by_policy(metrics))


class MetricsReader:
    """Reads the metrics for everybody who looks, at most once a second, and not on the event loop.

    Args:
        metrics: Of this process.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._reading = asyncio.Lock()
        self._read: tuple[float, Counts] | None = None

    async def counts(self) -> Counts:
        """What they hold, no older than `FRESH_S`."""
        async with self._reading:
            if self._read is None or time.monotonic() - self._read[0] > FRESH_S:
                counts = await asyncio.to_thread(count_all, self._metrics)
                self._read = time.monotonic(), counts
            return self._read[1]


def expert_rows(
    records: Iterable[AdapterRecord], counts: Counts, replicas: Sequence[Replica]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each version, sorted by name and then the newest first; and the traffic of ``base`` and ``other``."""
    traffic = counts.traffic
    rows = []
    for record in sorted(records, key=lambda r: (r.name, -r.created_at.timestamp(), r.version)):
        state = record.state.value
        seen = traffic.get(record.name)
        row = {
            "id": record.expert_id,
            "name": record.name,
            "version": record.version,
            "state": state,
            "share": record.share,
            "rank": record.rank,
            "size_bytes": record.size_bytes,
            "num_examples": len(record.examples),
            "description": record.card.description,
            "updated_at": record.updated_at.isoformat(),
            "probed": None if record.report is None else bool(record.report.get("passed")),
            "traffic": seen.as_json() if seen and state == "active" else None,
            "trial": counts.trials.get((record.name, state)) if state in ("active", "canary") else None,
            "resident_in": [replica.name for replica in replicas if record.expert_id in replica.residency.experts],
            "in_flight": sum(replica.experts[record.expert_id] for replica in replicas),
        }
        rows.append(row)
    return rows, {label: traffic[label].as_json() for label in ("base", "other") if label in traffic}


def replica_rows(pool: EnginePool) -> list[dict[str, Any]]:
    """A row for each replica of the engine, as it said last."""
    return [
        {
            "name": replica.name,
            "ready": replica.health.ready,
            "detail": replica.health.detail,
            "running": replica.residency.num_running,
            "waiting": replica.residency.num_waiting,
            "in_flight": replica.num_in_flight,
            "has_plugin": replica.residency.has_plugin,
            "experts": sorted(replica.residency.experts),
        }
        for replica in pool.replicas
    ]


def _samples(metric: MetricWrapperBase, suffix: str) -> Iterable[tuple[dict[str, str], float]]:
    for family in metric.collect():
        for sample in family.samples:
            if sample.name.endswith(suffix):
                yield sample.labels, sample.value
