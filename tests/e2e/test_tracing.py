"""Traces of a real gateway, exported to a collector in this process."""

import asyncio
import io
import itertools
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from adapters_registry.keys import new_key
from server.engine.fake import FakeEngine
from server.settings import SettingsError
from server.tracing.exporter import Tracing
from tests.e2e.conftest import EXAMPLES, register_examples
from tests.support.collector import Collector, Span
from tests.support.processes import free_port
from tests.support.servers import Running, http_server, running_gateway
from tests.support.waiting import WITHIN_S, eventually

PROMPT = EXAMPLES["sql"][0]
CHAT = {"model": "auto", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 5}
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")  # milliseconds until a batch leaves
    yield
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def collector() -> Collector:
    return Collector()


@pytest.fixture
async def url(collector: Collector) -> AsyncIterator[str]:
    async with http_server(collector) as opened:
        yield opened


@pytest.fixture
async def traced(url: str, tmp_path: Path) -> AsyncIterator[Running]:
    """A traced gateway without experts."""
    async with running_gateway(tmp_path / "home", otlp_endpoint=url) as running:
        yield running


@pytest.fixture
async def http(traced: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=traced.url, timeout=30) as opened:
        yield opened


def only(trace: dict[str, list[Span]], name: str) -> Span:
    (span,) = trace[name]
    return span


async def test_a_routed_request_is_a_tree_of_spans(
    collector: Collector, http: httpx.AsyncClient, traced: Running, tmp_path: Path
) -> None:
    await register_examples(traced, tmp_path)
    before = time.time_ns()
    response = await http.post("/v1/chat/completions", json={**CHAT, "temperature": 0.5}, headers={"user-agent": "t/1"})
    trace = await collector.trace()
    root = only(trace, "root")
    assert set(trace) == {"root", "auth", "queue", "embed", "route", "upstream"}
    assert (root.name, root.parent_id, root.is_error) == ("chat auto", "", False)
    assert all(only(trace, name).parent_id == root.span_id for name in trace if name != "root")
    assert {name: only(trace, name).kind for name in ("auth", "upstream")} == {"auth": "INTERNAL", "upstream": "CLIENT"}
    steps = [only(trace, name) for name in ("auth", "queue", "embed", "route", "upstream")]
    assert before <= root.start == steps[0].start
    assert all(first.start <= first.end <= second.start for first, second in itertools.pairwise(steps))
    assert steps[-1].end <= root.end <= time.time_ns()
    assert root.attributes.pop("moergate.confidence") == pytest.approx(
        float(response.headers["x-moergate-confidence"]), abs=1e-3
    )
    host, _, port = traced.url.removeprefix("http://").partition(":")
    recipe = response.headers["x-moergate-recipe"]
    assert root.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "server.address": host,
        "server.port": int(port),
        "user_agent.original": "t/1",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "moergate",
        "gen_ai.request.model": "auto",
        "gen_ai.request.stream": False,
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.model": recipe,
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 5,
        "moergate.request_id": response.headers["x-request-id"],
        "moergate.key_id": "anonymous",
        "moergate.recipe": recipe,
        "moergate.expert": "sql",
        "moergate.policy": "auto",
        "moergate.abstained": False,
    }
    engine = traced.gateway.settings.engine_url[0]
    upstream = steps[-1].attributes
    assert upstream["moergate.replica"] == engine
    assert upstream["url.full"] == engine + "/v1/chat/completions"
    assert upstream["http.response.status_code"] == 200
    assert collector.paths == {"/v1/traces"}
    assert root.resource["service.name"] == "moergate"
    assert not any(word.encode() in body for body in collector.bodies for word in (PROMPT, "word0"))


async def test_a_stream_shows_its_first_token(collector: Collector, http: httpx.AsyncClient, traced: Running) -> None:
    traced.engine.ttft_s, traced.engine.tokens_per_s = 0.05, 200
    response = await http.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert response.text.endswith("data: [DONE]\n\n")
    trace = await collector.trace()
    root, upstream, first = only(trace, "root"), only(trace, "upstream"), only(trace, "first token")
    assert first.parent_id == upstream.span_id
    assert upstream.start == first.start < first.end < upstream.end
    assert upstream.end - first.end >= 4 * 5_000_000 * 0.9  # four more tokens at 200 a second
    assert root.end == upstream.end
    assert root.attributes["gen_ai.request.stream"] is True
    assert root.attributes["gen_ai.response.time_to_first_chunk"] == pytest.approx((first.end - root.start) / 1e9)
    assert root.attributes["gen_ai.response.time_to_first_chunk"] >= 0.05
    assert root.attributes["gen_ai.usage.output_tokens"] == 5


async def test_what_no_policy_decides_has_no_embedding(collector: Collector, http: httpx.AsyncClient) -> None:
    await http.post("/v1/completions", json={"model": "base", "prompt": "x"})
    await http.post("/tokenize", json={"model": "base", "prompt": "x"})
    named, other = await collector.traces(2)
    assert only(named, "root").name == "text_completion base"
    assert set(named) == set(other) == {"root", "auth", "queue", "upstream"}
    assert "moergate.policy" not in only(named, "root").attributes
    assert only(other, "root").name == "POST /tokenize"
    assert "gen_ai.operation.name" not in only(other, "root").attributes


async def test_the_gateway_joins_the_callers_trace_and_the_engine_the_gateways(
    collector: Collector, http: httpx.AsyncClient, traced: Running
) -> None:
    await http.post("/v1/chat/completions", json=CHAT, headers={"traceparent": CALLER, "tracestate": "vendor=1"})
    trace = await collector.trace()
    root = only(trace, "root")
    assert (root.trace_id, root.parent_id) == (CALLER.split("-")[1], CALLER.split("-")[2])
    seen = traced.engine.seen[-1].headers
    assert seen["traceparent"] == f"00-{root.trace_id}-{only(trace, 'upstream').span_id}-01"
    assert seen["tracestate"] == "vendor=1"


async def test_a_caller_that_does_not_record_is_not_recorded(
    collector: Collector, http: httpx.AsyncClient, traced: Running
) -> None:
    await http.post("/v1/completions", json=CHAT, headers={"traceparent": CALLER[:-1] + "0"})
    passed_on = traced.engine.seen[-1].headers["traceparent"]
    assert passed_on.startswith(CALLER[:36])
    assert passed_on.endswith("-00")
    await http.post("/v1/completions", json={"model": "base", "prompt": "x"}, headers={"traceparent": "nonsense"})
    assert only(await collector.trace(), "root").parent_id == ""  # the second, and no other


@pytest.mark.parametrize(
    ("body", "status", "code", "failed"),
    [
        (b'{"model": "nope", "messages": []}', 404, "model_not_found", "route"),
        (b"{", 400, "bad_request", None),
    ],
)
async def test_refusals(
    body: bytes, status: int, code: str, failed: str | None, collector: Collector, http: httpx.AsyncClient
) -> None:
    assert (await http.post("/v1/chat/completions", content=body)).status_code == status
    trace = await collector.trace()
    root = only(trace, "root")
    assert (root.name, root.is_error) == ("chat", False)  # no name that a caller made up
    assert (root.attributes["http.response.status_code"], root.attributes["error.type"]) == (status, code)
    assert {s.name for spans in trace.values() for s in spans[:1] if "error.type" in s.attributes} == {
        "chat",
        *([failed] if failed else []),
    }
    assert "upstream" not in trace


async def test_callers_without_a_key(collector: Collector, http: httpx.AsyncClient, traced: Running) -> None:
    await traced.gateway.library.keys.add(new_key("team")[0])
    traced.gateway.authenticator.forget()
    assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 401
    trace = await collector.trace()
    assert set(trace) == {"root", "auth"}
    assert only(trace, "auth").attributes == {"error.type": "invalid_api_key"}
    assert only(trace, "root").attributes["http.response.status_code"] == 401


async def test_an_engine_that_is_down(url: str, collector: Collector, tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "h", FakeEngine(healthy=False), ready=False, otlp_endpoint=url) as running:
        async with httpx.AsyncClient(base_url=running.url) as http:
            assert (await http.post("/v1/completions", json={"model": "base", "prompt": "x"})).status_code == 503
        trace = await collector.trace()
    root = only(trace, "root")
    assert root.is_error
    assert root.attributes["error.type"] == "unavailable"
    assert root.attributes["moergate.recipe"] == "base"
    assert set(trace) == {"root", "auth", "queue"}


async def test_each_replica_that_was_asked_has_its_span(url: str, collector: Collector, tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "home", FakeEngine(), FakeEngine(), otlp_endpoint=url) as running:
        await eventually(lambda: all(replica.health.ready for replica in running.gateway.pool.replicas))
        dead = f"http://127.0.0.1:{free_port()}"
        running.gateway.pool.replicas[0].engine.url = dead  # type: ignore[attr-defined]
        async with httpx.AsyncClient(base_url=running.url) as http:
            assert (await http.post("/v1/completions", json={"model": "base", "prompt": "x"})).status_code == 200
        trace = await collector.trace()
    first, second = trace["upstream"]
    assert first.end <= second.start
    assert (first.is_error, second.is_error) == (True, False)
    assert (first.attributes["url.full"], first.attributes["error.type"]) == (dead + "/v1/completions", "engine_lost")
    assert "error.type" not in second.attributes
    assert (first.attributes.get("http.request.resend_count"), second.attributes["http.request.resend_count"]) == (
        None,
        1,
    )
    assert running.engines[1].seen[-1].headers["traceparent"].split("-")[2] == second.span_id
    assert not only(trace, "root").is_error


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_an_engine_that_breaks_off(collector: Collector, http: httpx.AsyncClient, traced: Running) -> None:
    traced.engine.break_after = 3
    await http.post("/v1/completions", json={"model": "base", "prompt": "x", "stream": True})
    trace = await collector.trace()
    root, upstream = only(trace, "root"), only(trace, "upstream")
    assert root.is_error
    assert upstream.is_error
    assert root.attributes["error.type"] == upstream.attributes["error.type"] == "engine_lost"
    assert root.attributes["http.response.status_code"] == 200  # it was sent before
    assert "first token" in trace


async def test_errors_of_the_engine_itself(url: str, collector: Collector, tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "home", otlp_endpoint=url) as running:
        await register_examples(running, tmp_path)
        running.engine.known = frozenset()
        async with httpx.AsyncClient(base_url=running.url) as http:
            assert (await http.post("/v1/completions", json={"model": "sql", "prompt": "x"})).status_code == 404
        trace = await collector.trace()
    assert only(trace, "upstream").is_error
    assert only(trace, "upstream").attributes["error.type"] == "404"
    assert only(trace, "root").attributes["error.type"] == "engine_error"


async def test_a_caller_that_hangs_up(collector: Collector, http: httpx.AsyncClient, traced: Running) -> None:
    traced.engine.tokens_per_s = 20
    body = {"model": "base", "prompt": "x", "stream": True, "max_tokens": 1000}
    async with http.stream("POST", "/v1/completions", json=body) as response:
        await anext(response.aiter_bytes())
    trace = await collector.trace()
    root = only(trace, "root")
    assert root.attributes["error.type"] == "client_closed_request"
    assert root.attributes["http.response.status_code"] == 200
    assert not root.is_error
    assert "first token" in trace


async def test_the_standard_variables_count(
    monkeypatch: pytest.MonkeyPatch, url: str, collector: Collector, tmp_path: Path
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.version=9")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "gateway-1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=blue")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    async with running_gateway(tmp_path / "home", otlp_endpoint=url + "/v1/traces") as running:
        async with httpx.AsyncClient(base_url=running.url) as http:
            for headers in ({}, {"traceparent": CALLER}):
                await http.post("/v1/completions", json={"model": "base", "prompt": "x"}, headers=headers)
        root = only(await collector.trace(), "root")  # the second, and no other
    assert root.trace_id == CALLER.split("-")[1]
    assert collector.headers[-1]["x-tenant"] == "blue"
    assert collector.paths == {"/v1/traces"}
    expected = {"service.name": "gateway-1", "service.version": "9", "deployment.environment.name": "test"}
    assert expected.items() <= root.resource.items()


async def test_all_tracing_can_be_switched_off_by_the_standard_variable(
    monkeypatch: pytest.MonkeyPatch, url: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    async with running_gateway(tmp_path / "home", otlp_endpoint=url) as running:
        assert running.gateway.tracing is None


def test_bad_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")  # less than a batch
    with pytest.raises(SettingsError, match=r"OTEL_.*max_export_batch_size"):
        Tracing("http://127.0.0.1:9")


async def test_it_is_off_by_default(tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "home") as running:
        assert running.gateway.tracing is None
        async with httpx.AsyncClient(base_url=running.url) as http:
            body = {"model": "base", "prompt": "x"}
            assert (await http.post("/v1/completions", json=body, headers={"traceparent": CALLER})).status_code == 200
        assert "traceparent" not in running.engine.seen[-1].headers


def test_without_it_nothing_of_it_is_loaded() -> None:
    loaded = "import sys, server.api.app; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    ran = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


async def test_a_collector_that_is_down_harms_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("server.tracing.exporter.CLOSE_S", 0.2)
    with structlog.testing.capture_logs() as lines:
        async with running_gateway(tmp_path / "home", otlp_endpoint=f"http://127.0.0.1:{free_port()}") as running:
            async with httpx.AsyncClient(base_url=running.url) as http:
                for _ in range(20):
                    response = await http.post("/v1/completions", json={"model": "base", "prompt": "x"})
                    assert response.status_code == 200
    assert len([line for line in lines if line["event"].startswith("traces")]) <= 2


async def test_an_outage_is_told_once_and_its_end_too(collector: Collector, tmp_path: Path) -> None:
    failing = True

    async def moody(scope: Any, receive: Any, send: Any) -> None:
        if not failing:
            await collector(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 403, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    with structlog.testing.capture_logs() as lines:

        def told() -> list[str]:
            return [line["event"] for line in lines if line["event"].startswith("traces")]

        async with http_server(moody) as url, running_gateway(tmp_path / "home", otlp_endpoint=url) as running:
            async with httpx.AsyncClient(base_url=running.url) as http:

                async def told_after_a_request(num: int) -> bool:
                    await http.post("/v1/completions", json={"model": "base", "prompt": "x"})
                    return len(told()) >= num

                await eventually(lambda: told_after_a_request(1))
                failing = False
                await eventually(lambda: told_after_a_request(2))
    assert told() == ["traces cannot be exported", "traces are exported again"]
    warning = next(line for line in lines if line["event"] == "traces cannot be exported")
    assert url in warning["endpoint"]
    assert "403" in warning["why"]


async def test_a_collector_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "90")  # far beyond what the end may take
    monkeypatch.setattr("server.tracing.exporter.CLOSE_S", 0.2)
    over = asyncio.Event()

    async def say_nothing(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    with structlog.testing.capture_logs() as lines:
        async with running_gateway(tmp_path / "home", otlp_endpoint=f"http://127.0.0.1:{port}") as running:
            async with httpx.AsyncClient(base_url=running.url) as http:
                await http.post("/v1/completions", json={"model": "base", "prompt": "x"})
            tracing = running.gateway.tracing
            assert tracing is not None
            async with asyncio.timeout(WITHIN_S):
                await tracing.close()
    assert "traces lost: the collector does not accept them" in [line["event"] for line in lines]
    over.set()
    silent.close()
    await silent.wait_closed()


async def test_every_log_line_of_a_request_has_its_ids(url: str, collector: Collector, tmp_path: Path) -> None:
    lines = io.StringIO()
    seen: list[dict[str, Any]] = []

    def keep(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
        seen.append(dict(event))
        raise structlog.DropEvent

    structlog.configure(processors=[structlog.contextvars.merge_contextvars, keep])
    try:
        settings = {"otlp_endpoint": url, "log_level": "info", "log_format": "json"}
        async with running_gateway(tmp_path / "home", **settings) as running:
            running.gateway.access_log._out = lines
            async with httpx.AsyncClient(base_url=running.url) as http:
                body = {"model": "base", "prompt": "x"}
                good = await http.post("/v1/completions", json=body, headers={"x-request-id": "good"})
                engine = running.gateway.pool.replicas[0].engine
                engine.url = f"http://127.0.0.1:{free_port()}"  # type: ignore[attr-defined]
                lost = await http.post("/v1/chat/completions", json=body, headers={"x-request-id": "lost"})
            assert (good.status_code, lost.status_code) == (200, 502)
            id_of_good, id_of_lost = [only(trace, "root").trace_id for trace in await collector.traces(2)]
    finally:
        structlog.reset_defaults()
    of_lost = [event for event in seen if event["event"] in ("engine unreachable", "refused")]
    assert {event["event"] for event in of_lost} == {"engine unreachable", "refused"}
    assert {(event["request_id"], event["trace_id"]) for event in of_lost} == {("lost", id_of_lost)}
    (line,) = map(json.loads, lines.getvalue().splitlines())
    assert (line["request_id"], line["trace_id"], line["event"]) == ("good", id_of_good, "request")
