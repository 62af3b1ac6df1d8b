"""The metrics of requests and decisions, made from the plain counts at each scrape."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from server.telemetry import families
from server.telemetry.distribution import Distribution
from server.telemetry.families import Family
from server.telemetry.traffic_counts import TrafficCounts

Labels = Sequence[str]


class TrafficCollector(Collector):
    """Shows `TrafficCounts` to a Prometheus registry."""

    def __init__(self, counts: TrafficCounts) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """All families, with a series for each combination of labels that was counted."""
        counts = self._counts
        routes, usage, keys, decisions = counts.routes, counts.usage, counts.keys, counts.decisions
        yield _counter(
            families.REQUESTS,
            (((*at, str(status)), num) for at, route in routes.items() for status, num in route.statuses.items()),
        )
        yield _histogram(families.DURATION, ((at, route.duration) for at, route in routes.items()))
        yield _histogram(families.TTFT, ((at, route.ttft) for at, route in routes.items()))
        yield _histogram(families.TPOT, ((at, route.tpot) for at, route in routes.items()))
        yield _histogram(
            families.TOKEN_USAGE,
            (
                ((*at, kind), tokens)
                for at, used in usage.items()
                for kind, tokens in (("input", used.input_tokens), ("output", used.output_tokens))
            ),
        )
        yield _counter(families.COST, ((at, used.cost) for at, used in usage.items()))
        yield _counter(
            families.KEY_REQUESTS,
            (((key, str(status)), num) for key, used in keys.items() for status, num in used.statuses.items()),
        )
        yield _counter(
            families.KEY_TOKENS,
            (
                ((key, kind), num)
                for key, used in keys.items()
                for kind, num in (("input", used.input_tokens), ("output", used.output_tokens))
            ),
        )
        yield _counter(families.KEY_COST, (((key,), used.cost) for key, used in keys.items()))
        yield _counter(
            families.CANARY_REQUESTS,
            (
                ((expert, role, str(status)), num)
                for (expert, role), statuses in counts.trials.items()
                for status, num in statuses.items()
            ),
        )
        yield _counter(
            families.DECISIONS,
            (((policy, expert), num) for policy, each in decisions.items() for expert, num in each.experts.items()),
        )
        yield _counter(
            families.ABSTENTIONS,
            (((policy,), each.num_abstentions) for policy, each in decisions.items() if each.num_abstentions),
        )
        yield _histogram(
            families.DECISION_CONFIDENCE, (((policy,), each.confidence) for policy, each in decisions.items())
        )


def _counter(family: Family, series: Iterable[tuple[Labels, float]]) -> Metric:
    found = CounterMetricFamily(family.name, family.help, labels=family.labels)
    for labels, value in series:
        found.add_metric(labels, value)
    return found


def _histogram(family: Family, series: Iterable[tuple[Labels, Distribution]]) -> Metric:
    found = HistogramMetricFamily(family.name, family.help, labels=family.labels)
    bounds = [str(floatToGoString(bound)) for bound in (*family.buckets, math.inf)]  # type: ignore[no-untyped-call]
    for labels, values in series:
        found.add_metric(labels, list(zip(bounds, values.cumulative(), strict=True)), values.total)
    return found
