"""Spans from what was noted of a request: bounded, encodable, in the right place, whatever the caller sent."""

import time
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, TraceFlags

from routers.base import Decision
from server.endpoints import CHAT, Endpoint
from server.engine.body import JsonBody
from server.engine.recipes import parse
from server.planning.catalog import Target
from server.planning.plan import Plan
from server.telemetry.traffic_counts import Outcome
from server.tracing.request_trace import SpanSink, Trace
from server.tracing.span_attributes import MAX_NUMBER, MAX_TEXT_CHARS

SECRET = "a prompt that nobody may read"


def begin(
    emitted: list[ReadableSpan],
    *,
    headers: dict[str, str] | None = None,
    sampled: bool = True,
    endpoint: Endpoint = CHAT,
) -> Trace:
    ids = RandomIdGenerator()
    sink = SpanSink(emitted.append, ids.generate_span_id, Resource({}), InstrumentationScope("test"))
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    context = SpanContext(ids.generate_trace_id(), ids.generate_span_id(), False, flags)
    return Trace(sink, context, None, endpoint, headers or {}, "r1", time.perf_counter())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(["max_tokens", "max_completion_tokens", "max_output_tokens", "temperature", "top_p", "stream"])
HEADERS = st.fixed_dictionaries({"host": st.text(max_size=400), "user-agent": st.text(max_size=400)})


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(KEYS, JSON), st.none() | st.text(max_size=500), HEADERS)
def test_whatever_callers_send_can_be_encoded_and_is_bounded(
    fields: dict[str, Any], model: str | None, headers: dict[str, str]
) -> None:
    spans: list[ReadableSpan] = []
    headers = {name: text.encode("latin-1", "replace").decode("latin-1") for name, text in headers.items()}
    model = None if model is None else model.encode("utf-8", "replace").decode()
    trace = begin(spans, headers=headers)
    trace.note_request(
        "k1", JsonBody(b"", {**fields, "model": model, "messages": [{"role": "user", "content": SECRET}]})
    )
    trace.refused(404, "model_not_found")
    wire = encode_spans(spans).SerializeToString()
    assert SECRET.encode() not in wire
    attributes = spans[-1].attributes or {}
    assert all(len(value) <= MAX_TEXT_CHARS for value in attributes.values() if isinstance(value, str))
    assert all(abs(value) <= MAX_NUMBER for value in attributes.values() if isinstance(value, int | float))
    assert spans[-1].name == "chat"


def test_what_failed_is_the_step_that_did_not_end() -> None:
    order = ("auth", "read", "queue")
    for num_reached, failed in enumerate(("auth", None, "queue", "route")):
        spans: list[ReadableSpan] = []
        trace = begin(spans)
        for step in order[:num_reached]:
            trace.reached[step] = time.perf_counter()
        trace.refused(503, "unavailable")
        errors = [span.name for span in spans if "error.type" in (span.attributes or {})]
        assert errors == [*([failed] if failed else []), "chat"]
        assert all(not span.status.is_ok for span in spans if span.name in errors)


def test_what_is_not_sampled_is_not_written() -> None:
    spans: list[ReadableSpan] = []
    trace = begin(spans, sampled=False)
    trace.note_request("k1", JsonBody(b"{}", {}))
    trace.attempt("first")
    trace.attempt("second")
    assert trace.headers("http://e/v1")["traceparent"].endswith("-00")
    trace.answered(Outcome(CHAT.path, "none", "base", 200, 0.1), None, 200)
    assert spans == []


def test_an_engines_password_is_in_no_span() -> None:
    spans: list[ReadableSpan] = []
    trace = begin(spans)
    trace.attempt("local")
    trace.headers("http://user:hush@engine:8001/v1")
    trace.refused(502, "engine_lost")
    upstream = next(span for span in spans if span.name == "upstream")
    assert upstream.attributes is not None
    assert upstream.attributes["server.address"] == "engine"
    assert b"hush" not in encode_spans(spans).SerializeToString()


def test_a_callers_own_recipe_is_no_part_of_a_name() -> None:
    mix = parse("mix(a@00000001*0.5,b@00000002*0.5)")
    for kind, asked, name in (("recipe", str(mix), "chat mix"), ("base", "tiny", "chat tiny")):
        spans: list[ReadableSpan] = []
        trace = begin(spans)
        trace.plan = Plan(Target(kind, asked), mix)  # type: ignore[arg-type]
        trace.reached.update(auth=1.0, read=1.0, queue=1.0, plan=1.0)
        trace.answered(Outcome(CHAT.path, "none", "mix", 200, 0.1), None, 200)
        assert spans[-1].name == name
        assert (spans[-1].attributes or {})["gen_ai.response.model"] == str(mix)


def test_times_of_a_decision_end_where_the_plan_did() -> None:
    spans: list[ReadableSpan] = []
    trace = begin(spans)
    now = time.perf_counter()
    trace.plan = Plan(Target("policy", "auto"), parse("base"), (), Decision((), 0.25), embed_s=0.002, route_s=0.001)
    trace.reached.update(auth=now, read=now, queue=now, plan=now + 0.004)
    trace.answered(Outcome(CHAT.path, "auto", "base", 200, 1.0), None, 200)
    times = {span.name: (span.start_time or 0, span.end_time or 0) for span in spans}
    assert times["embed"][1] == times["route"][0]
    assert abs(times["embed"][1] - times["embed"][0] - 2_000_000) <= 2
    assert abs(times["route"][1] - times["queue"][1] - 4_000_000) <= 2
