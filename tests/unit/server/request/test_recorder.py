"""The recorder: one ended request, seen by everything that keeps records of it."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from adapters_registry.key_limits import KeyLimits
from adapters_registry.library import Library
from adapters_registry.records import utc_now
from server.access.admission import Admission
from server.access.entry import Entry
from server.access.key_limits import Limiter
from server.endpoints import CHAT, ENDPOINTS, Endpoint
from server.engine.body import parse_body
from server.engine.recipes import Single
from server.journal.decision_log import DecisionLog
from server.request.recorder import MAX_MODEL_CHARS, ForwardedRequest, Recorder
from server.telemetry.drift import RecentDecisions
from server.telemetry.logs import AccessLog
from server.telemetry.metrics import Metrics
from server.telemetry.prices import Price
from server.telemetry.traffic_counts import Outcome
from tests.support.parts import confined, forwarded, lease_of, metrics_with, plan_for

SQL = Single("sql@00000001")
LIMITS = KeyLimits(tokens_per_minute=1000, budget_per_day=10.0)


@pytest.fixture
async def library(tmp_path: Path) -> AsyncIterator[Library]:
    library = await Library.open(tmp_path)
    yield library
    await library.close()


@dataclass
class Sinks:
    """A recorder and where it records."""

    recorder: Recorder
    metrics: Metrics
    decisions: DecisionLog
    access_log: AccessLog
    lines: io.StringIO = field(default_factory=io.StringIO)

    def line(self) -> dict[str, Any]:
        self.access_log.flush()
        (line,) = self.lines.getvalue().splitlines()
        found: dict[str, Any] = orjson.loads(line)
        return found

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def sinks(library: Library) -> Sinks:
    metrics, lines = metrics_with(expert=Price(input=1e6, output=2e6)), io.StringIO()
    decisions = DecisionLog(library.decisions, RecentDecisions(), metrics, level="decisions")
    access_log = AccessLog("json", lines)
    return Sinks(Recorder(metrics, decisions, access_log), metrics, decisions, access_log, lines)


def outcome(endpoint: Endpoint = CHAT, status: int = 200, **more: Any) -> Outcome:
    return Outcome(endpoint.path, "none", "sql", status, duration_s=0.25, key="app", **more)


class NotedTrace:
    """A trace that keeps how the request ended."""

    trace_id = "f" * 32

    def __init__(self) -> None:
        self.ends: list[tuple[Outcome, str | None, int]] = []

    def answered(self, outcome: Outcome, error: str | None, engine_status: int) -> None:
        self.ends.append((outcome, error, engine_status))


async def test_a_request_is_recorded_everywhere(sinks: Sinks) -> None:
    admission, trace = Admission(1, 0, 5.0), NotedTrace()
    base = forwarded(plan_for(SQL, asked="sql"), overhead_s=0.0123, principal=confined(LIMITS))
    request = ForwardedRequest(
        base.request_id,
        base.endpoint,
        base.received_at,
        base.overhead_s,
        base.principal,
        base.plan,
        trace=trace,  # type: ignore[arg-type]
    )
    ended = outcome(input_tokens=3, output_tokens=5)
    sinks.recorder.ended(request, await lease_of(admission), ended, error=None, engine_status=200)
    assert admission.num_active == 0
    labels = {"endpoint": CHAT.path, "policy": "none", "expert": "sql"}
    assert sinks.sample("moergate_requests_total", **labels, status="200") == 1
    assert sinks.decisions.holds("k1", "r1")
    assert trace.ends == [(ended, None, 200)]
    line = sinks.line()
    del line["time"]
    assert line == {
        "level": "info",
        "event": "request",
        "request_id": "r1",
        "endpoint": CHAT.path,
        "model": "sql",
        "recipe": "sql@00000001",
        "status": 200,
        "duration_ms": 250.0,
        "overhead_ms": 12.3,
        "output_tokens": 5,
        "trace_id": trace.trace_id,
    }


@pytest.mark.parametrize(
    ("status", "error", "counted"),
    [
        (200, None, None),
        (502, "engine_lost", "engine_lost"),
        (499, "client_closed_request", "client_closed_request"),
        (503, None, "engine_error"),
    ],
)
async def test_only_failures_count_as_errors(sinks: Sinks, status: int, error: str | None, counted: str | None) -> None:
    ended = outcome(status=status)
    sinks.recorder.ended(forwarded(), await lease_of(Admission(1, 0, 5.0)), ended, error=error, engine_status=200)
    samples = [
        (sample.labels["code"], sample.value)
        for family in sinks.metrics.registry.collect()
        if family.name == "moergate_errors"
        for sample in family.samples
        if sample.name == "moergate_errors_total"
    ]
    assert samples == ([(counted, 1.0)] if counted else [])


@pytest.mark.parametrize("path", ["/tokenize", "/v1/messages/count_tokens"])
async def test_what_generates_nothing_is_no_decision(sinks: Sinks, path: str) -> None:
    endpoint = ENDPOINTS[path]
    lease = await lease_of(Admission(1, 0, 5.0))
    sinks.recorder.ended(forwarded(endpoint=endpoint), lease, outcome(endpoint), error=None, engine_status=200)
    assert not sinks.decisions.holds("anonymous", "r1")
    assert sinks.line()["endpoint"] == path


@pytest.mark.parametrize(
    ("ended", "engine_status", "tokens", "cost"),
    [
        (outcome(input_tokens=3, output_tokens=5), 200, 8, 13.0),
        (outcome(status=499, output_tokens=2), 200, "prompt + 2", None),  # the caller left before the usage came
        (outcome(status=400), 400, 0, 0.0),  # the engine refused: nothing was computed
    ],
)
async def test_the_lease_is_settled_with_what_was_used(
    library: Library, sinks: Sinks, ended: Outcome, engine_status: int, tokens: int | str, cost: float | None
) -> None:
    limiter, admission = Limiter(library.usage, sinks.metrics), Admission(1, 0, 5.0)
    body = parse_body(orjson.dumps({"prompt": "x" * 400, "max_tokens": 50}))
    lease = await Entry(limiter, admission).enter(confined(LIMITS), body, generates=True)
    assert lease.grant is not None
    prompt_tokens = lease.grant.prompt_tokens
    sinks.recorder.ended(forwarded(), lease, ended, error=None, engine_status=engine_status)
    await limiter.close()
    minute, day = await library.usage.used("k1", LIMITS, utc_now())
    assert minute.tokens == (prompt_tokens + 2 if tokens == "prompt + 2" else tokens)
    assert day.cost == (prompt_tokens + 4.0 if cost is None else cost)
    assert admission.num_active == 0


async def test_a_callers_text_in_the_log_is_bounded_and_one_line(sinks: Sinks) -> None:
    plan = plan_for(asked="mix(\n" + "ü" * 10_000)
    lease = await lease_of(Admission(1, 0, 5.0))
    sinks.recorder.ended(forwarded(plan), lease, outcome(), error=None, engine_status=200)
    model = sinks.line()["model"]
    assert model.startswith("mix(\\n\\xfc")
    assert len(model) <= 4 * MAX_MODEL_CHARS
