"""Requests, and which answers count as right."""

from __future__ import annotations

import orjson
import pytest
from bench.client import Exchange
from bench.phase import PhaseResult, PhaseSpec
from bench.traffic import NUM_FEW, Workload, prompt

WHOLE = Workload("auto", stream=False, prompts="few", num_tokens=2, seed=1)
STREAM = Workload("auto", stream=True, prompts="few", num_tokens=2, seed=1)


def whole(model: str = "auto", text: str = "word0 word1") -> bytes:
    return orjson.dumps({"model": model, "choices": [{"message": {"content": text}}]})


def events(*words: str, model: str = "auto", done: bool = True) -> bytes:
    sent = [{"model": model, "choices": [{"delta": {"content": word + " "}}]} for word in words]
    lines = [*map(orjson.dumps, sent), *([b"[DONE]"] if done else [])]
    return b"".join(b"data: " + line + b"\n\n" for line in lines)


def test_prompts_repeat_or_never_do() -> None:
    few = {WHOLE.body(index) for index in range(100)}
    fresh = Workload("auto", False, "fresh", 2, seed=3)
    other = Workload("auto", False, "fresh", 2, seed=4)
    assert len(few) == NUM_FEW
    assert len({load.body(index) for load in (fresh, other) for index in range(100)}) == 200
    assert prompt(1) != prompt(2)


def test_good_answers() -> None:
    assert WHOLE.fault(Exchange(200, [whole()])) is None
    assert STREAM.fault(Exchange(200, [events("word0", "word1")])) is None


@pytest.mark.parametrize(
    ("status", "body", "fault"),
    [
        (503, b"{}", "status 503"),
        (200, b"<html>", "not a chat completion"),
        (200, b'{"model": "auto", "choices": []}', "not a chat completion"),
        (200, whole(model="base"), "another model"),
        (200, whole(text="word0"), "incomplete"),
    ],
)
def test_bad_whole_answers(status: int, body: bytes, fault: str) -> None:
    assert WHOLE.fault(Exchange(status, [body])) == fault


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (events("word0", "word1", done=False), "stream without end"),
        (events("word0", "word1", model="base"), "another model"),
        (events("word1", "word0"), "incomplete"),
        (b"data: [DONE]\n\n", "another model"),
    ],
)
def test_bad_streams(body: bytes, fault: str) -> None:
    assert STREAM.fault(Exchange(200, [body])) == fault


def test_phases_travel_as_json() -> None:
    spec = PhaseSpec(80, STREAM, seconds=1.5, warmup_s=0.5, rate=None, concurrency=3)
    result = PhaseResult(2, {"status 503": 1}, 1.5, [1.0], [0.5], [], [0.1])
    assert PhaseSpec.load(spec.dump()) == spec
    assert PhaseResult.load(result.dump()) == result
    assert result.num_errors == 1
