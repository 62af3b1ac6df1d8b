"""Step 7 of the data path: records the end of a request, once, in everything that keeps such records.

These are the usage of the key, the metrics, the decision log, the trace and the access log. `Recorder` gets plain
values and knows nothing of the connection to the engine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from server.access.auth import Principal
from server.access.entry import Lease
from server.endpoints import Endpoint
from server.journal.decision_log import DecisionLog
from server.planning.plan import Plan
from server.telemetry.logs import AccessLog
from server.telemetry.metrics import Metrics
from server.telemetry.traffic_counts import Outcome

if TYPE_CHECKING:
    from server.tracing.request_trace import Trace

MAX_MODEL_CHARS = 200


@dataclass(frozen=True, slots=True)
class ForwardedRequest:
    """A request that an engine has begun to answer.

    Attributes:
        request_id: The request's id.
        endpoint: The endpoint that was called.
        received_at: ``time.perf_counter()`` at its arrival.
        overhead_s: Time that the gateway spent before it asked the engine, in seconds.
        principal: The caller.
        plan: What the engine executes.
        hide_usage: Whether the caller must not see the token counts that end the stream.
        trace: The request's trace, if tracing is on.
    """

    request_id: str
    endpoint: Endpoint
    received_at: float
    overhead_s: float
    principal: Principal
    plan: Plan
    hide_usage: bool = False
    trace: Trace | None = None


class Recorder:
    """Records ended requests.

    Args:
        metrics: Counts outcomes and errors, and knows the prices.
        decisions: The decision log.
        access_log: Gets one line per request.
    """

    def __init__(self, metrics: Metrics, decisions: DecisionLog, access_log: AccessLog) -> None:
        self._metrics = metrics
        self._decisions = decisions
        self._access_log = access_log

    def ended(
        self, request: ForwardedRequest, lease: Lease, outcome: Outcome, *, error: str | None, engine_status: int
    ) -> None:
        """Release the lease with the actual usage, and record the outcome.

        Args:
            error: Code of the error that the caller got, or that ended a stream.
            engine_status: HTTP status of the engine's answer.
        """
        self._release(lease, outcome, usage_missing=not outcome.input_tokens and engine_status < 400)
        self._metrics.record(outcome)
        if request.endpoint.generates:
            self._decisions.note(request.plan, outcome, request.request_id, request.principal.key_id)
        if outcome.status >= 400:
            self._metrics.record_error(outcome.endpoint, error or "engine_error", outcome.status)
        if (trace := request.trace) is not None:
            trace.answered(outcome, error, engine_status)
        self._access_log.write(
            request_id=request.request_id,
            endpoint=outcome.endpoint,
            model=ascii(request.plan.target.asked[:MAX_MODEL_CHARS])[1:-1],
            recipe=str(request.plan.recipe),
            status=outcome.status,
            duration_ms=round(outcome.duration_s * 1000, 1),
            overhead_ms=round(request.overhead_s * 1000, 2),
            output_tokens=outcome.output_tokens,
            **({} if trace is None else {"trace_id": trace.trace_id}),
        )

    def _release(self, lease: Lease, outcome: Outcome, *, usage_missing: bool) -> None:
        if lease.grant is None:
            lease.release()
            return
        if usage_missing:  # for example, the client disconnected: charge the estimated prompt
            outcome = replace(outcome, input_tokens=lease.grant.prompt_tokens)
        lease.release(outcome.input_tokens + outcome.output_tokens, self._metrics.cost_of(outcome))
