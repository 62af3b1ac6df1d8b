"""Attributes of spans: a request, its routing and its answer.

Names follow OpenTelemetry's conventions (``gen_ai.``, ``http.``, ``server.``); Moergate's own names start with
``moergate.``. Texts and numbers from callers are bounded. No attribute contains text of a prompt or an answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard
from urllib.parse import urlsplit

from server.endpoints import Endpoint

if TYPE_CHECKING:
    from server.engine.body import JsonBody
    from server.planning.plan import Plan
    from server.telemetry.traffic_counts import Outcome

Attributes = dict[str, str | bool | int | float]

MAX_TEXT_CHARS = 200
MAX_NUMBER = 2**53
"""Larger numbers from callers are omitted: the wire format cannot hold them, and the whole batch would be lost."""


def request_attributes(endpoint: Endpoint, body: JsonBody) -> Attributes:
    """Return what the caller asked for."""
    found: Attributes = {"gen_ai.request.model": (body.model or "auto")[:MAX_TEXT_CHARS]}
    if endpoint.operation is not None:
        found["gen_ai.request.stream"] = body.stream
        numbers = {
            "gen_ai.request.max_tokens": body.max_answer_tokens or None,
            "gen_ai.request.temperature": body.fields.get("temperature"),
            "gen_ai.request.top_p": body.fields.get("top_p"),
        }
        found.update({name: value for name, value in numbers.items() if _is_bounded_number(value)})
    return found


def plan_attributes(plan: Plan) -> Attributes:
    """Return what was decided."""
    found: Attributes = {"moergate.recipe": str(plan.recipe), "moergate.expert": plan.expert_name}
    if plan.policy_name is not None and plan.decision is not None:
        found["moergate.policy"] = plan.policy_name
        found["moergate.confidence"] = float(plan.decision.confidence)
        found["moergate.abstained"] = plan.decision.abstained
    return found


def answer_attributes(outcome: Outcome, recipe: str) -> Attributes:
    """Return what came of the request; `recipe` is what the engine executed."""
    found: Attributes = {"gen_ai.response.model": recipe}
    if outcome.input_tokens:
        found["gen_ai.usage.input_tokens"] = outcome.input_tokens
    if outcome.output_tokens:
        found["gen_ai.usage.output_tokens"] = outcome.output_tokens
    if outcome.streamed and outcome.ttft_s is not None:
        found["gen_ai.response.time_to_first_chunk"] = outcome.ttft_s
    return found


def model_name(plan: Plan | None) -> str:
    """Return the model for a span's name: one of a bounded set, so neither unknown names nor the caller's recipes."""
    if plan is None:
        return ""
    if plan.policy_name is not None:
        return plan.policy_name
    return plan.expert_name if plan.target.kind == "recipe" else plan.target.asked


def address_of(netloc: str) -> Attributes:
    """Return host and port of a network location; empty if it is not a valid address."""
    try:
        parts = urlsplit(f"//{netloc[:MAX_TEXT_CHARS]}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return {}
    found: Attributes = {}
    if host:
        found["server.address"] = host
        if port:
            found["server.port"] = port
    return found


def _is_bounded_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER
