"""The answer: its bytes and headers, its limits on waiting, and its end."""

from __future__ import annotations

import asyncio
import io
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from server.access.admission import Admission
from server.engine.base import EngineRequest
from server.engine.body import parse_body
from server.engine.errors import EngineBroke
from server.engine.recipes import Single
from server.errors import EngineLost, EngineTimeout
from server.journal.decision_log import DecisionLog
from server.planning.plan import Plan
from server.request.answer import Answer, Limits
from server.request.deadline import Deadline
from server.request.recorder import Recorder
from server.telemetry.drift import RecentDecisions
from server.telemetry.logs import AccessLog
from tests.support.parts import EVENTS, LIMITS, MemoryEngine, forwarded, lease_of, metrics_with, plan_for, pool_over
from tests.support.waiting import eventually

SQL = Single("sql@00000001")
HOLD = 0.02
"""Seconds that an engine may take in tests of limits on waiting."""


def event(text: str) -> bytes:
    return b'data: {"model":"sql@00000001","choices":[{"delta":{"content":"%s"}}]}\n\n' % text.encode()


USAGE = b'data: {"model":"sql@00000001","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}\n\n'


@dataclass
class Answered:
    """An answer with what it records, and what the caller gets."""

    answer: Answer
    engine: MemoryEngine
    admission: Admission
    metrics: Any
    access_log: AccessLog
    lines: io.StringIO
    sent: list[bytes] = field(default_factory=list)

    async def send(self, events: bytes) -> None:
        self.sent.append(events)

    def line(self) -> dict[str, Any]:
        self.access_log.flush()
        (line,) = self.lines.getvalue().splitlines()
        found: dict[str, Any] = orjson.loads(line)
        return found

    def num_errors(self, code: str) -> float:
        return sum(
            sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "moergate_errors_total" and sample.labels["code"] == code
        )


class NoDecisions:
    """A store that is never written to: the log's tasks are not started."""


async def answer_of(
    engine: MemoryEngine, plan: Plan | None = None, *, limits: Limits = LIMITS, hide_usage: bool = False
) -> Answered:
    metrics, admission, lines = metrics_with(), Admission(1, 0, 5.0), io.StringIO()
    access_log = AccessLog("json", lines)
    store: Any = NoDecisions()
    recorder = Recorder(metrics, DecisionLog(store, RecentDecisions(), metrics, level="off"), access_log)
    plan = plan or plan_for(SQL, asked="sql")
    pool = pool_over(engine, metrics=metrics)
    engine.model = str(plan.recipe)
    response = await pool.forward(EngineRequest("/v1/chat/completions", parse_body(b"{}"), plan.recipe, "r1"))
    is_stream = engine.headers is EVENTS
    answer = Answer(
        response=response,
        deadline=Deadline(limits.first_token_s if is_stream else limits.total_s),
        request=forwarded(plan, hide_usage=hide_usage),
        lease=await lease_of(admission),
        recorder=recorder,
        limits=limits,
    )
    return Answered(answer, engine, admission, metrics, access_log, lines)


async def test_the_caller_sees_the_name_that_it_asked_for_and_the_decision() -> None:
    engine = MemoryEngine(
        (b'{"model":"sql@00000001","usage":{"prompt_tokens":9,"completion_tokens":2}}',),
        headers={"Content-Type": "application/json", "Connection": "close", "X-Engine": "yes", "Date": "today"},
    )
    answered = await answer_of(engine)
    assert not answered.answer.is_stream
    assert orjson.loads(await answered.answer.read())["model"] == "sql"
    headers = dict(answered.answer.headers())
    assert headers.keys() == {
        b"content-type",
        b"x-engine",
        b"x-request-id",
        b"x-moergate-recipe",
        b"x-moergate-overhead-ms",
    }
    assert (headers[b"x-request-id"], headers[b"x-moergate-recipe"]) == (b"r1", b"sql@00000001")
    assert headers[b"x-moergate-overhead-ms"] == b"1.00"
    answered.answer.finish()
    answered.answer.finish()
    assert (answered.admission.num_active, engine.num_closed) == (0, 1)
    line = answered.line()
    assert (line["status"], line["output_tokens"], line["recipe"]) == (200, 2, "sql@00000001")


@pytest.mark.parametrize("hide_usage", [False, True])
async def test_a_stream_arrives_in_whole_events(hide_usage: bool) -> None:
    events = event("a") + event("b") + USAGE + b"data: [DONE]\n\n"
    cut = len(event("a")) + 10
    answered = await answer_of(MemoryEngine((events[:cut], events[cut:]), headers=EVENTS), hide_usage=hide_usage)
    assert answered.answer.is_stream
    await answered.answer.stream_to(answered.send)
    answered.answer.finish()
    assert all(part.endswith(b"\n\n") for part in answered.sent)
    text = b"".join(answered.sent)
    assert (text.count(b"data: "), text.count(b'"model":"sql"')) == ((3, 2) if hide_usage else (4, 3))
    assert (b"usage" in text) is not hide_usage
    assert answered.line()["output_tokens"] == 2


@pytest.mark.parametrize("status", [400, 404, 500])
async def test_a_refusal_of_the_engine_is_passed_on_and_counted(status: int) -> None:
    answered = await answer_of(MemoryEngine((b'{"error":{}}',), status=status))
    assert (answered.answer.status, await answered.answer.read()) == (status, b'{"error":{}}')
    answered.answer.finish()
    assert (answered.line()["status"], answered.num_errors("engine_error")) == (status, 1)


async def test_an_engine_that_breaks_off_is_an_error_of_its_own() -> None:
    answered = await answer_of(MemoryEngine((b'{"mo',), breaks=EngineBroke("The engine stopped.")))
    with pytest.raises(EngineLost, match="The engine stopped"):
        await answered.answer.read()
    answered.answer.finish()
    assert (answered.line()["status"], answered.num_errors("engine_lost")) == (EngineLost.status, 1)


async def test_a_stream_that_breaks_off_ends_with_an_error_event() -> None:
    answered = await answer_of(MemoryEngine((event("a"),), headers=EVENTS, breaks=EngineBroke("The engine stopped.")))
    await answered.answer.stream_to(answered.send)
    answered.answer.finish()
    last = orjson.loads(answered.sent[-1].removeprefix(b"data: "))
    assert last["error"]["code"] == "engine_lost"
    assert answered.line()["status"] == EngineLost.status
    assert answered.num_errors("engine_lost") == 1


async def test_an_answer_that_takes_too_long_is_given_up() -> None:
    engine = MemoryEngine((b"{", b"}"), hold_parts=asyncio.Event())
    answered = await answer_of(engine, limits=Limits(first_token_s=5.0, total_s=HOLD))
    with pytest.raises(EngineTimeout, match=r"the whole answer within 0\.02 s"):
        await answered.answer.read()
    answered.answer.finish()
    assert (answered.line()["status"], engine.num_closed) == (EngineTimeout.status, 1)


async def test_a_stream_that_takes_too_long_ends_with_an_error_event() -> None:
    engine = MemoryEngine((event("a"), event("b")), headers=EVENTS, hold_parts=asyncio.Event())
    answered = await answer_of(engine, limits=Limits(first_token_s=5.0, total_s=HOLD))
    await answered.answer.stream_to(answered.send)
    answered.answer.finish()
    first, last = answered.sent
    assert b'"content":"a"' in first
    assert "the whole answer within 0.02 s" in orjson.loads(last.removeprefix(b"data: "))["error"]["message"]
    assert answered.num_errors("engine_timeout") == 1


async def test_the_first_token_has_its_own_limit() -> None:
    engine = MemoryEngine((event("a"),), headers=EVENTS, hold_first=asyncio.Event())
    answered = await answer_of(engine, limits=Limits(first_token_s=HOLD, total_s=5.0))
    await answered.answer.stream_to(answered.send)
    answered.answer.finish()
    (only,) = answered.sent
    assert "the first token within 0.02 s" in orjson.loads(only.removeprefix(b"data: "))["error"]["message"]
    assert answered.num_errors("engine_timeout") == 1


async def test_a_caller_that_left_is_recorded_as_such() -> None:
    answered = await answer_of(MemoryEngine((event("a"), event("b")), headers=EVENTS, hold_parts=asyncio.Event()))
    streaming = asyncio.create_task(answered.answer.stream_to(answered.send))
    await eventually(lambda: answered.sent)
    streaming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await streaming
    answered.answer.finish(client_left=True)
    assert (answered.line()["status"], answered.line()["output_tokens"]) == (499, 1)
    assert answered.num_errors("client_closed_request") == 1
    assert answered.admission.num_active == 0
