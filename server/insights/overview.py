"""The operator's overview: experts with their traffic, and the engine's replicas. Reads only.

Traffic comes from this process's own counts, so it starts with the gateway and goes by expert name: the versions of an
expert share their figures, and so do all experts beyond the setting metrics_experts. While an expert has a canary, the
requests of its two versions are also counted separately. Nothing here is on a request's path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapters_registry.records import AdapterRecord
from server.engine.pool import EnginePool, Replica
from server.telemetry.distribution import Distribution
from server.telemetry.traffic_counts import DURATION_SECONDS, TTFT_SECONDS, TrafficCounts

CLIENT_CLOSED = 499
"""Status of requests whose client disconnected: neither the gateway nor the engine failed."""


@dataclass(slots=True)
class ExpertTraffic:
    """What one label has seen over all endpoints and policies.

    Attributes:
        requests: Requests that ended.
        errors: Requests that failed.
        duration: Seconds to the last byte.
        ttft: Seconds to the first byte of streamed answers.
        input_tokens: Sum over all prompts.
        output_tokens: Sum over all answers.
        cost: Cost in the currency of the configured prices.
    """

    requests: int = 0
    errors: int = 0
    duration: Distribution = field(default_factory=lambda: Distribution(DURATION_SECONDS))
    ttft: Distribution = field(default_factory=lambda: Distribution(TTFT_SECONDS))
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """For the admin API; a quantile is None where nothing was observed."""
        return {
            "requests": self.requests,
            "errors": self.errors,
            "p50_s": self.duration.quantile(0.5),
            "p95_s": self.duration.quantile(0.95),
            "ttft_p50_s": self.ttft.quantile(0.5),
            "ttft_p95_s": self.ttft.quantile(0.95),
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost": round(self.cost, 6),
        }


def traffic_by_expert(counts: TrafficCounts) -> dict[str, ExpertTraffic]:
    """Traffic by label: names of experts, ``base`` and ``other``."""
    found: dict[str, ExpertTraffic] = {}
    for (_, _, expert), route in counts.routes.items():
        traffic = found.setdefault(expert, ExpertTraffic())
        traffic.requests += route.statuses.total()
        traffic.errors += num_errors(route.statuses)
        traffic.duration.add(route.duration)
        traffic.ttft.add(route.ttft)
    for (_, expert), usage in counts.usage.items():
        traffic = found.setdefault(expert, ExpertTraffic())
        traffic.input_tokens += int(usage.input_tokens.total)
        traffic.output_tokens += int(usage.output_tokens.total)
        traffic.cost += usage.cost
    return found


def trial_counts(counts: TrafficCounts) -> dict[tuple[str, str], dict[str, int]]:
    """Requests and errors by expert and role, of experts that have or had a canary."""
    return {
        place: {"requests": statuses.total(), "errors": num_errors(statuses)}
        for place, statuses in counts.trials.items()
    }


def decisions_of(counts: TrafficCounts, policy: str) -> dict[str, int]:
    """Number of decisions and abstentions of a policy."""
    made = counts.decisions.get(policy)
    return {"decisions": made.experts.total() if made else 0, "abstentions": made.num_abstentions if made else 0}


def num_errors(statuses: Counter[int]) -> int:
    """Number of requests that failed; a client that disconnected is not a failure."""
    return sum(num for status, num in statuses.items() if status >= 400 and status != CLIENT_CLOSED)


def expert_rows(
    records: Iterable[AdapterRecord],
    traffic: Mapping[str, ExpertTraffic],
    trials: Mapping[tuple[str, str], dict[str, int]],
    replicas: Sequence[Replica],
) -> list[dict[str, Any]]:
    """A row for each version, sorted by name, and the newest version of a name first."""
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
            "probed": None if record.report is None else record.report.passed,
            "traffic": seen.as_json() if seen and state == "active" else None,
            "trial": trials.get((record.name, state)) if state in ("active", "canary") else None,
            "resident_in": [replica.name for replica in replicas if record.expert_id in replica.residency.experts],
            "in_flight": sum(replica.experts[record.expert_id] for replica in replicas),
        }
        rows.append(row)
    return rows


def replica_rows(pool: EnginePool) -> list[dict[str, Any]]:
    """A row for each replica of the engine, as of its last report."""
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
