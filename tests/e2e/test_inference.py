"""The OpenAI endpoints through the whole gateway, with the official client, in front of a double of the engine."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from server.engine.fake import FakeEngine
from tests.e2e.conftest import EXAMPLES, register_examples
from tests.support.adapters import make_adapter, manifest
from tests.support.asking import answers
from tests.support.servers import Running, running_gateway
from tests.support.waiting import eventually

SQL_PROMPT = EXAMPLES["sql"][0]


@pytest.fixture
async def client(running: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0) as opened:
        yield opened


@pytest.fixture
async def http(running: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=running.url, timeout=30) as opened:
        yield opened


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


async def test_auto_reaches_the_right_expert(client: openai.AsyncOpenAI, running: Running) -> None:
    raw = await client.chat.completions.with_raw_response.create(model="auto", messages=user(SQL_PROMPT))
    answer = raw.parse()
    recipe = raw.headers["x-moergate-recipe"]
    assert answer.model == "auto"
    assert recipe.startswith("sql@")
    assert raw.headers["x-moergate-policy"] == "auto"
    assert 0 <= float(raw.headers["x-moergate-confidence"]) <= 1
    assert float(raw.headers["x-moergate-overhead-ms"]) > 0
    assert json.loads(running.engine.seen[-1].body)["model"] == recipe
    assert running.engine.seen[-1].headers["x-request-id"] == raw.headers["x-request-id"]


async def test_a_stream_says_what_was_asked_for(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="auto", messages=user(SQL_PROMPT), stream=True, max_tokens=5)
    chunks = [chunk async for chunk in stream]
    assert {chunk.model for chunk in chunks} == {"auto"}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "word0 word1 word2 word3 word4 "


async def test_completions_base_and_experts_by_name(client: openai.AsyncOpenAI, running: Running) -> None:
    models = {model.id: model async for model in client.models.list()}
    assert {"tiny-base", "auto", "sql", "dates"} <= models.keys()
    version = models["sql"].model_extra["id_with_version"]  # type: ignore[index]
    for asked, executed in (("tiny-base", "base"), ("sql", version), (version, version)):
        answer = await client.completions.create(model=asked, prompt="x", max_tokens=2)
        assert answer.model == asked
        assert json.loads(running.engine.seen[-1].body)["model"] == executed
    assert (await client.models.retrieve("sql")).id == "sql"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
async def test_every_field_passes_through_untouched(path: str, http: httpx.AsyncClient, running: Running) -> None:
    body = (
        b'{"model":"sql", "messages":[{"role":"user","content":[{"type":"text","text":"hi"},'
        b'{"type":"image_url","image_url":{"url":"data:,"}}]}], "tools":[{"type":"function","function":{"name":"f"}}],'
        b' "logprobs":true, "n":2, "a_future_field":{"x":[1.50, 2e3]}, "min_p": 0.05, "prompt":"hi", "input":"hi"}'
    )
    response = await http.post(path, content=body)
    assert response.status_code == 200
    seen = running.engine.seen[-1]
    assert seen.path == path
    recipe = response.headers["x-moergate-recipe"].encode()
    assert seen.body == body.replace(b'"model":"sql"', b'"model":"%s"' % recipe)


async def test_unknown_names_get_the_nearest(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        await client.chat.completions.create(model="datse", messages=user("x"))
    assert error.value.code == "model_not_found"
    assert "Did you mean dates" in error.value.message


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "an array"),
        (b'{"model": 1}', "'model' must be a string"),
        (b"", "not valid JSON"),
    ],
)
async def test_bad_bodies_are_named(content: bytes, hint: str, http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/chat/completions", content=content)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert hint in error["message"]
    assert response.headers["x-request-id"]


async def test_a_body_of_20_mb_is_refused(http: httpx.AsyncClient) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * (1 << 20)

    for content in (b"x" * (20 << 20), parts()):
        response = await http.post("/v1/chat/completions", content=content)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "body_too_large"


async def test_wrong_paths_and_methods_are_openai_errors(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/nothing")).json()["error"]["code"] == "not_found"
    response = await http.get("/v1/chat/completions")
    assert (response.status_code, response.json()["error"]["code"]) == (405, "method_not_allowed")


async def test_prompts_of_token_ids_are_decoded_and_routed(http: httpx.AsyncClient, running: Running) -> None:
    response = await http.post("/v1/completions", json={"model": "auto", "prompt": [1, 2, 3]})
    assert response.status_code == 200
    assert [seen.path for seen in running.engine.seen][-2:] == ["/detokenize", "/v1/completions"]


async def test_tokenising_asks_no_policy(http: httpx.AsyncClient) -> None:
    response = await http.post("/tokenize", json={"model": "auto", "prompt": "a b c"})
    assert response.json()["count"] == 3
    assert "x-moergate-policy" not in response.headers


async def test_explaining_generates_nothing(http: httpx.AsyncClient, running: Running) -> None:
    before = len(running.engine.seen)
    answer = (await http.post("/v1/route", json={"messages": user(SQL_PROMPT)})).json()
    assert answer["policy"] == "auto"
    assert answer["recipe"].startswith("sql@")
    assert answer["abstained"] is False
    assert answer["candidates"][0]["expert"] == answer["recipe"]
    assert answer["neighbours"][0]["example"] == SQL_PROMPT
    assert set(answer["overhead_ms"]) >= {"auth", "embed", "route"}
    assert len(running.engine.seen) == before


async def test_explaining_leaves_nothing_behind(http: httpx.AsyncClient, running: Running) -> None:
    def counted() -> tuple[float, ...]:
        names = ("moergate_decisions_total", "moergate_decision_confidence_count", "moergate_abstentions_total")
        return tuple(_metric(running, name, policy="auto") for name in names)

    sql = (await http.get("/v1/models/sql")).json()["id_with_version"]
    before = counted()
    for model, text in [("auto", SQL_PROMPT), ("auto:2", SQL_PROMPT), ("sql", "x")]:
        answer = (await http.post("/v1/route", json={"model": model, "messages": user(text)})).json()
        assert answer["recipe"] == ("base" if model == "auto:2" else sql)
    assert counted() == before
    assert (
        await http.post("/v1/chat/completions", json={"model": "auto", "messages": user(SQL_PROMPT)})
    ).status_code == 200
    assert counted() == (before[0] + 1, before[1] + 1, before[2])


SYSTEM = "Write every date in ISO form, for example the fifth of June 1999."
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "system", "content": SYSTEM}, *user("14 May 2021")]},
    "/v1/completions": {"prompt": "convert 3 March 2021 to ISO"},
    "/v1/responses": {"instructions": SYSTEM, "input": "14 May 2021"},
    "/v1/messages": {"system": SYSTEM, "messages": user("14 May 2021"), "max_tokens": 5},
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("names_endpoint", [False, True])
async def test_an_explanation_agrees_with_the_decision(
    http: httpx.AsyncClient, path: str, names_endpoint: bool
) -> None:
    body = {"model": "auto", **BODIES[path]}
    params = {"endpoint": path} if names_endpoint else {}
    explanation = (await http.post("/v1/route", json=body, params=params)).json()
    decision = (await http.post(path, json=body)).headers
    assert explanation["recipe"] == decision["x-moergate-recipe"]
    assert f"{explanation['confidence']:.3f}" == decision["x-moergate-confidence"]


async def test_the_endpoint_of_an_explanation_decides_what_is_read(http: httpx.AsyncClient) -> None:
    body = {"model": "auto", **BODIES["/v1/messages"]}
    as_messages, as_chat = [
        (await http.post("/v1/route", json=body, params={"endpoint": path})).json()
        for path in ("/v1/messages", "/v1/chat/completions")
    ]
    assert as_messages["candidates"] != as_chat["candidates"]  # only one of the two reads `system`
    for unknown in ("/tokenize", "/v1/embeddings", ""):
        refused = await http.post("/v1/route", json=body, params={"endpoint": unknown})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "endpoint")
        assert "/v1/messages" in refused.json()["error"]["message"]


async def test_what_fits_nothing_goes_to_the_base(tmp_path: Path) -> None:
    policies = {"auto": {"router": "knn", "options": {"threshold": 0.5}}}
    async with running_gateway(tmp_path / "home", policies=policies) as running:
        await register_examples(running, tmp_path)
        async with httpx.AsyncClient(base_url=running.url) as http:
            response = await http.post("/v1/chat/completions", json={"model": "auto", "messages": user("zzz qqq vvv")})
            assert response.headers["x-moergate-recipe"] == "base"
            assert json.loads(running.engine.seen[-1].body)["model"] == "base"
            answer = (await http.post("/v1/route", json={"messages": user("zzz qqq vvv")})).json()
    assert (answer["recipe"], answer["abstained"]) == ("base", True)
    assert _metric(running, "moergate_abstentions_total", policy="auto") == 1


async def test_a_caller_that_hangs_up_cancels_the_work(running: Running) -> None:
    engine, admission = running.engine, running.gateway.admission
    engine.tokens_per_s = 20
    for stream in (True, False):
        cancelled = engine.cancelled
        body = {"model": "sql", "prompt": "x", "stream": stream, "max_tokens": 1000}
        async with httpx.AsyncClient(base_url=running.url) as client:
            task = asyncio.create_task(_read_first(client, body))
            await eventually(lambda: running.engine.running)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await eventually(lambda: not engine.running and not admission.num_active)
        await eventually(lambda before=cancelled: engine.cancelled != before)


async def _read_first(client: httpx.AsyncClient, body: dict[str, object]) -> None:
    async with client.stream("POST", "/v1/completions", json=body) as response:
        async for _ in response.aiter_bytes():
            await asyncio.sleep(60)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_an_engine_that_dies_in_a_stream_leaves_an_error_event(http: httpx.AsyncClient, running: Running) -> None:
    running.engine.break_after = 3
    async with http.stream("POST", "/v1/completions", json={"model": "sql", "prompt": "x", "stream": True}) as response:
        events = [line.removeprefix("data: ") async for line in response.aiter_lines() if line]
    assert len(events) == 4
    assert json.loads(events[-1])["error"]["code"] == "engine_lost"


async def test_slow_engines_run_into_limits(tmp_path: Path) -> None:
    limits = {"first_token_timeout_s": 0.2, "total_timeout_s": 0.6}
    async with running_gateway(tmp_path / "home", FakeEngine(tokens_per_s=5), **limits) as running:
        async with httpx.AsyncClient(base_url=running.url, timeout=30) as http:
            body = {"model": "tiny-base", "prompt": "x", "max_tokens": 100}
            whole = await http.post("/v1/completions", json=body)
            assert (whole.status_code, whole.json()["error"]["code"]) == (504, "engine_timeout")
            streamed = await http.post("/v1/completions", json=body | {"stream": True})
            assert streamed.status_code == 200
            assert "the whole answer within 0.6 s" in streamed.text
            running.engine.ttft_s = 5
            first = await http.post("/v1/completions", json=body | {"stream": True})
            assert (first.status_code, first.json()["error"]["code"]) == (504, "engine_timeout")


async def test_overload_is_refused_and_bounded(tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "home", FakeEngine(ttft_s=0.3), max_concurrency=2, max_queue=1) as running:
        async with httpx.AsyncClient(base_url=running.url, timeout=30) as http:
            body = {"model": "tiny-base", "prompt": "x"}
            answers = await asyncio.gather(*(http.post("/v1/completions", json=body) for _ in range(6)))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200, 200, 200, 429, 429, 429]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "overloaded"
    assert int(refused.headers["retry-after"]) >= 1


async def test_a_dead_replica_is_passed_over(tmp_path: Path) -> None:
    first, second = FakeEngine(), FakeEngine()
    async with running_gateway(tmp_path / "home", first, second) as running:
        await eventually(lambda: all(replica.health.ready for replica in running.gateway.pool.replicas))
        url = running.gateway.settings.engine_url[0]
        running.gateway.pool.replicas[0].engine.url = url.rpartition(":")[0] + ":1"  # type: ignore[attr-defined]
        async with httpx.AsyncClient(base_url=running.url) as http:
            for _ in range(3):
                assert (await http.post("/v1/completions", json={"model": "base", "prompt": "x"})).status_code == 200
    assert (len(first.seen), len(second.seen)) == (0, 3)


async def test_without_an_engine_callers_are_told_to_come_back(tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "home", FakeEngine(healthy=False), ready=False) as running:
        async with httpx.AsyncClient(base_url=running.url) as http:
            response = await http.post("/v1/completions", json={"model": "base", "prompt": "x"})
            assert (response.status_code, response.headers["retry-after"]) == (503, "5")
            assert (await http.get("/livez")).status_code == 200
            health = await http.get("/health")
            assert (health.status_code, health.content) == (200, b"")
            ready = await http.get("/readyz")
            assert ready.status_code == 503
            assert "engine" in ready.json()["missing"]
            running.engine.healthy = True
            await eventually(lambda: answers(http, "/readyz", 200))
            assert (await http.post("/v1/completions", json={"model": "base", "prompt": "x"})).status_code == 200


async def test_stream_tokens_can_be_counted_exactly_and_in_secret(tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "home", count_stream_tokens=True) as running:
        async with openai.AsyncOpenAI(base_url=running.url + "/v1", api_key="none") as client:
            stream = await client.chat.completions.create(model="base", messages=user("x"), stream=True, max_tokens=4)
            chunks = [chunk async for chunk in stream]
        assert len(chunks) == 4
        assert all(chunk.usage is None for chunk in chunks)
        assert _metric(running, "gen_ai_client_token_usage_sum", token_type="output") == 4
        assert _metric(running, "gen_ai_client_token_usage_sum", token_type="input") == 5


async def test_metrics_tell_what_happened(tmp_path: Path) -> None:
    prices = {"base": {"input": 1.0, "output": 2.0}, "expert": {"input": 10.0, "output": 20.0}}
    async with running_gateway(tmp_path / "home", prices=prices) as running:
        async with httpx.AsyncClient(base_url=running.url) as http:
            adapter = make_adapter(tmp_path / "a")
            assert (await http.post("/admin/adapters", json=manifest("sql", adapter))).status_code == 201
            for model in ("base", "sql"):
                await http.post("/v1/completions", json={"model": model, "prompt": "x", "max_tokens": 10})
            await http.post("/v1/completions", json={"model": "nope", "prompt": "x"})
            text = (await http.get("/metrics")).text
    assert "gen_ai_server_request_duration_seconds_bucket" in text
    assert _metric(running, "moergate_cost_total", expert="base") == pytest.approx((5 * 1 + 10 * 2) / 1e6)
    assert _metric(running, "moergate_cost_total", expert="sql") == pytest.approx((5 * 10 + 10 * 20) / 1e6)
    assert _metric(running, "moergate_requests_total", expert="sql", status="200") == 1
    assert _metric(running, "moergate_errors_total", code="model_not_found") == 1
    assert _metric(running, "moergate_overhead_seconds_count", phase="connect") >= 2


def _metric(running: Running, name: str, **labels: str) -> float:
    return sum(
        sample.value
        for family in running.gateway.metrics.registry.collect()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
