"""The data path from a call to an answer: what each step decides, and that a failure at any step gives back all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from adapters_registry.key_limits import KeyLimits
from adapters_registry.records import utc_now
from routers.base import Decision, ScoredExpert, WeightedExpert
from server.endpoints import CHAT, COMPLETIONS, ENDPOINTS, EXPLANATION, MESSAGES, RESPONSES, Endpoint
from server.engine.errors import EngineUnreachable
from server.errors import (
    AuthenticationFailed,
    BadRequest,
    EngineLost,
    EngineTimeout,
    GatewayError,
    ModelNotFound,
    PermissionDenied,
    RateLimited,
    TooManyRequests,
    Unavailable,
)
from server.planning.catalog import Catalog
from server.request.answer import Limits
from tests.support.parts import (
    EVENTS,
    ChoosingRouter,
    MemoryEngine,
    call_of,
    catalog_of,
    data_path,
    policy_of,
)
from tests.support.records import record
from tests.support.waiting import eventually

SQL, DATES = record("sql"), record("dates")
USER = [{"role": "user", "content": "list all orders"}]
CHAT_BODY = {"model": "auto", "messages": USER}


def sql_or_base(num_chars: int = 1000) -> ChoosingRouter:
    """Chooses sql for texts of at most this length, and abstains for others."""

    def choose(query: Any) -> Decision:
        ranked = (ScoredExpert(SQL.expert_id, 0.75), ScoredExpert(DATES.expert_id, 0.25))
        chosen = (WeightedExpert(SQL.expert_id),) if len(query.text) <= num_chars else ()
        return Decision(chosen, len(query.text) / 1000, ranked)

    return ChoosingRouter(choose)


def routed(router: ChoosingRouter | None = None) -> Catalog:
    return catalog_of(SQL, DATES, policy=policy_of(router or sql_or_base(), SQL, DATES))


async def test_a_request_reaches_the_engine_with_its_recipe(tmp_path: Path) -> None:
    async with data_path(tmp_path, routed()) as path:
        call = call_of(CHAT_BODY)
        answer = await path.pipeline.run(call)
        (sent,) = path.engine.requests
        assert (sent.path, str(sent.recipe), sent.request_id) == (CHAT.path, SQL.expert_id, "r1")
        assert sent.body.raw == await call.read_body()
        assert path.admission.num_active == 1
        headers = dict(answer.headers())
        assert headers[b"x-moergate-recipe"] == SQL.expert_id.encode()
        assert (headers[b"x-moergate-policy"], headers[b"x-moergate-confidence"]) == (b"auto", b"0.015")
        await answer.read()
        answer.finish()
        assert path.admission.num_active == 0
        assert path.decisions.holds("anonymous", "r1")
        (line,) = path.logged()
        assert (line["endpoint"], line["model"], line["recipe"]) == (CHAT.path, "auto", SQL.expert_id)
        for phase in ("auth", "queue", "embed", "route"):
            assert path.sample("moergate_overhead_seconds_count", phase=phase) == 1


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (CHAT, {"messages": [{"role": "system", "content": "You write SQL for the shop."}, *USER]}),
        (COMPLETIONS, {"prompt": "list all orders"}),
        (RESPONSES, {"instructions": "You write SQL for the shop.", "input": "list all orders"}),
        (MESSAGES, {"system": "You write SQL for the shop.", "messages": USER}),
        (ENDPOINTS["/v1/messages/count_tokens"], {"system": "You write SQL for the shop.", "messages": USER}),
    ],
)
async def test_an_explanation_asks_the_router_what_the_request_asks(
    tmp_path: Path, endpoint: Endpoint, body: dict[str, Any]
) -> None:
    router = sql_or_base()
    async with data_path(tmp_path, routed(router)) as path:
        explained, times_ms = await path.pipeline.explain(call_of(body, EXPLANATION))
        named, _ = await path.pipeline.explain(call_of(body, endpoint))
        assert path.engine.requests == []
        assert path.admission.num_active == 0
        answer = await path.pipeline.run(call_of(body, endpoint))
        answer.finish()
        assert {query.text for query in router.queries} == {router.queries[0].text}
        assert len(router.queries) == 3
        assert explained.decision == named.decision
        assert named.decision is not None
        assert dict(answer.headers())[b"x-moergate-confidence"] == b"%.3f" % named.decision.confidence
        assert times_ms.keys() == {"auth", "embed", "route"}


@pytest.mark.parametrize("path_", ["/tokenize", "/detokenize"])
async def test_where_experts_are_alike_no_policy_is_asked(tmp_path: Path, path_: str) -> None:
    router = sql_or_base()
    async with data_path(tmp_path, routed(router)) as path:
        answer = await path.pipeline.run(call_of({"model": "auto", "prompt": "x"}, ENDPOINTS[path_]))
        answer.finish()
        assert (str(path.engine.requests[0].recipe), router.queries) == ("base", [])
        assert b"x-moergate-policy" not in dict(answer.headers())
        assert not path.decisions.holds("anonymous", "r1")


@pytest.mark.parametrize(
    ("endpoint", "body", "counts", "asks"),
    [
        (CHAT, {"messages": USER, "stream": True}, True, True),
        (COMPLETIONS, {"prompt": "x", "stream": True}, True, True),
        (CHAT, {"messages": USER, "stream": True}, False, False),
        (CHAT, {"messages": USER, "stream": True, "stream_options": {"include_usage": True}}, True, False),
        (CHAT, {"messages": USER}, True, False),
        (MESSAGES, {"messages": USER, "stream": True}, True, False),
        (RESPONSES, {"input": "x", "stream": True}, True, False),
    ],
)
async def test_streams_are_asked_for_usage_where_tokens_count(
    tmp_path: Path, endpoint: Endpoint, body: dict[str, Any], counts: bool, asks: bool
) -> None:
    engine = MemoryEngine((b'data: {"choices":[],"usage":{"completion_tokens":2}}\n\n',), headers=EVENTS)
    async with data_path(tmp_path, engine=engine, count_stream_tokens=counts) as path:
        answer = await path.pipeline.run(call_of({"model": "base", **body}, endpoint))
        sent: list[bytes] = []

        async def send(events: bytes) -> None:
            sent.append(events)

        await answer.stream_to(send)
        answer.finish()
        asked = path.engine.requests[0].body
        assert (asked.raw != orjson.dumps({"model": "base", **body})) is asks
        if asks:
            assert orjson.loads(asked.raw)["stream_options"] == {"include_usage": True}
        assert (b"usage" not in b"".join(sent)) is asks  # what only the gateway asked for is hidden
        assert path.logged()[0]["output_tokens"] == 2


async def test_a_key_with_a_token_limit_counts_streams_too(tmp_path: Path) -> None:
    limits = KeyLimits(tokens_per_minute=1000)
    engine = MemoryEngine(
        (b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n',), headers=EVENTS
    )
    async with data_path(tmp_path, engine=engine) as path:
        key = await path.key(limits=limits)
        body = {"model": "base", "messages": USER, "stream": True, "max_tokens": 9}
        answer = await path.pipeline.run(call_of(body, key=key))
        assert b"x-ratelimit-remaining-tokens" in dict(answer.headers())

        async def drop(_events: bytes) -> None: ...

        await answer.stream_to(drop)
        answer.finish()
        await path.limiter.close()
        (record_,) = await path.library.keys.list()
        (used,) = await path.library.usage.used(record_.key_id, limits, utc_now())
        assert (used.requests, used.tokens) == (1, 5)


def unreachable() -> MemoryEngine:
    return MemoryEngine(refuses=EngineUnreachable("away"))


@pytest.mark.parametrize(
    ("body", "engine", "error"),
    [
        ({"model": "nobody", "messages": USER}, MemoryEngine, ModelNotFound),
        ({"model": 3, "messages": USER}, MemoryEngine, BadRequest),
        (b"{", MemoryEngine, BadRequest),
        ({"model": "auto", "messages": USER, "task_id": 5}, MemoryEngine, BadRequest),
        ({"model": "mix(", "messages": USER}, MemoryEngine, BadRequest),
        ({"model": "base", "messages": USER}, unreachable, (EngineLost, Unavailable)),  # the second finds no replica
    ],
)
async def test_a_failure_before_the_answer_gives_everything_back(
    tmp_path: Path,
    body: Any,
    engine: Callable[[], MemoryEngine],
    error: type[GatewayError] | tuple[type[GatewayError], ...],
) -> None:
    async with data_path(tmp_path, routed(), engine()) as path:
        key = await path.key(limits=KeyLimits(max_concurrency=1, tokens_per_minute=10_000))
        for _ in range(2):  # the second would get RateLimited if the first still counted
            with pytest.raises(error):
                await path.pipeline.run(call_of(body, key=key))
            await path.limiter.close()
        assert path.admission.num_active == 0
        assert path.pool.replicas[0].num_in_flight == 0
        assert path.logged() == []


async def test_who_may_not_infer_reads_no_body(tmp_path: Path) -> None:
    async def unread() -> bytes:
        raise AssertionError("the body was read")

    async with data_path(tmp_path) as path:
        key = await path.key(scopes=("metrics",))
        for headers, error in ((call_of({}, key=key).headers, PermissionDenied), ({}, AuthenticationFailed)):
            call = replace(call_of({}), headers=headers, read_body=unread)
            for carry in (path.pipeline.run, path.pipeline.explain):
                with pytest.raises(error):
                    await carry(call)


async def test_a_full_gateway_refuses_and_recovers(tmp_path: Path) -> None:
    async with data_path(tmp_path, max_active=1, max_queue=0) as path:
        body = {"model": "base", "messages": USER}
        running = await path.pipeline.run(call_of(body))
        with pytest.raises(TooManyRequests, match="running 1 requests"):
            await path.pipeline.run(call_of(body))
        running.finish()
        (await path.pipeline.run(call_of(body))).finish()


async def test_concurrent_requests_of_a_key_are_bounded(tmp_path: Path) -> None:
    async with data_path(tmp_path) as path:
        key = await path.key(limits=KeyLimits(max_concurrency=1))
        body = {"model": "base", "messages": USER}
        running = await path.pipeline.run(call_of(body, key=key))
        with pytest.raises(RateLimited):
            await path.pipeline.run(call_of(body, key=key))
        running.finish()
        await path.limiter.close()
        (await path.pipeline.run(call_of(body, key=key))).finish()


@pytest.mark.parametrize(
    ("stream", "limits"),
    [(True, Limits(first_token_s=0.02, total_s=5.0)), (False, Limits(first_token_s=5.0, total_s=0.02))],
)
async def test_an_engine_that_does_not_begin_is_given_up(tmp_path: Path, stream: bool, limits: Limits) -> None:
    engine = MemoryEngine(hold=asyncio.Event())
    async with data_path(tmp_path, engine=engine, limits=limits) as path:
        with pytest.raises(EngineTimeout, match=r"did not start to answer within 0\.02 s"):
            await path.pipeline.run(call_of({"model": "base", "messages": USER, "stream": stream}))
        assert (path.admission.num_active, path.pool.replicas[0].num_in_flight) == (0, 0)


async def test_a_caller_that_hangs_up_while_the_engine_is_asked_gives_everything_back(tmp_path: Path) -> None:
    engine = MemoryEngine(hold=asyncio.Event())
    async with data_path(tmp_path, engine=engine) as path:
        running = asyncio.create_task(path.pipeline.run(call_of({"model": "base", "messages": USER})))
        await eventually(lambda: engine.requests)
        assert path.admission.num_active == 1
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (path.admission.num_active, path.pool.replicas[0].num_in_flight) == (0, 0)
