"""Who should have answered, and who did: every kind of fault is seen."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from bench.client import Exchange
from load.asked import Answered, Asked, Kind, judge, read
from load.timeline import Timeline

LIBRARY = {"sql": "11111111", "math": "22222222"}
SQL, MATH = "sql@11111111", "math@22222222"


def asked(kind: Kind, *experts: tuple[str, float], version: str | None = None, stream: bool = False) -> Asked:
    return Asked(kind, "m", experts, version, stream, 2)


def verdict(request: Asked, recipe: str, *, status: int = 200, echo: str | None = None, **timeline: Any) -> str:
    echoes = frozenset({recipe if echo is None else echo})
    fault = "" if status == 200 else f"status {status}"
    answered = Answered(10.0, 11.0, status, recipe, echoes, 2, fault)
    return judge(request, answered, timeline.get("timeline") or Timeline(LIBRARY))


def test_right_answers() -> None:
    assert verdict(asked("base"), "base") == "right"
    assert verdict(asked("expert", ("sql", 0)), SQL) == "right"
    assert verdict(asked("version", ("sql", 0), version="11111111"), SQL) == "right"
    assert verdict(asked("mix", ("sql", 0.6), ("math", 0.4)), f"mix({MATH}*0.4,{SQL}*0.6)") == "right"
    assert verdict(asked("gate", ("sql", 0), ("math", 0)), f"gate(uniform,k=2,t=1;{MATH},{SQL})") == "right"
    assert verdict(asked("auto", ("sql", 0), version="11111111"), SQL) == "right"


@pytest.mark.parametrize(
    ("request_", "recipe", "wrong"),
    [
        (asked("base"), SQL, "wrong expert"),
        (asked("expert", ("sql", 0)), MATH, "wrong expert"),
        (asked("expert", ("sql", 0)), "base", "wrong expert"),
        (asked("expert", ("sql", 0)), f"mix({SQL}*0.5,{MATH}*0.5)", "wrong expert"),
        (asked("expert", ("sql", 0)), "sql@99999999", "a version that was not there"),
        (asked("version", ("sql", 0), version="33333333"), SQL, "wrong version"),
        (asked("mix", ("sql", 0.6), ("math", 0.4)), f"mix({MATH}*0.6,{SQL}*0.4)", "wrong weight"),
        (asked("mix", ("sql", 0.6), ("math", 0.4)), SQL, "wrong expert"),
        (asked("auto", ("sql", 0), version="11111111"), MATH, "wrong expert"),
        (asked("auto", ("sql", 0), version="11111111"), "base", "abstained"),
        (asked("auto", ("sql", 0), version="11111111"), "other@12345678", "a version that was not there"),
    ],
)
def test_wrong_answers(request_: Asked, recipe: str, wrong: str) -> None:
    assert verdict(request_, recipe) == wrong


def test_the_engines_word_counts_not_the_header_alone() -> None:
    lie = verdict(asked("expert", ("sql", 0)), SQL, echo=MATH)
    assert lie == "the engine was asked for another recipe than the header says"


def test_404_is_right_only_for_what_may_be_absent() -> None:
    assert verdict(asked("expert", ("sql", 0)), "", status=404) == "404 for an expert that is there"
    assert verdict(asked("expert", ("gone", 0)), "", status=404) == "absent"
    assert verdict(asked("auto", ("gone", 0)), "", status=404) == "status 404"
    replaced = Timeline(LIBRARY)
    replaced.begin("sql", 10.2)
    replaced.end("sql", "44444444", 10.4)
    old = asked("version", ("sql", 0), version="11111111")
    assert verdict(old, "", status=404, timeline=replaced) == "absent"
    assert verdict(old, "", status=404) == "404 for an expert that is there"


def test_an_answer_after_the_acknowledged_removal_is_wrong() -> None:
    removed = Timeline(LIBRARY)
    removed.begin("sql", 1)
    removed.end("sql", None, 2)
    assert verdict(asked("expert", ("sql", 0)), SQL, timeline=removed) == "a version that was not there"


def test_a_policy_may_lag_while_its_expert_changes() -> None:
    changing = Timeline(LIBRARY)
    changing.begin("sql", 9)
    changing.end("sql", "44444444", 10.5)
    assert verdict(asked("auto", ("sql", 0), version="11111111"), "base", timeline=changing) == "changing"


def exchange(body: bytes, status: int = 200) -> Exchange:
    return Exchange(status, [body], recipe=SQL)


def event(word: str) -> bytes:
    fields = {"model": "m", "system_fingerprint": "fake:" + SQL, "choices": [{"delta": {"content": word}}]}
    return b"data: " + orjson.dumps(fields) + b"\n\n"


def test_streams_are_read() -> None:
    request = asked("expert", ("sql", 0), stream=True)
    whole = read(request, exchange(event("a ") + event("b ") + b"data: [DONE]\n\n"), 0.0)
    assert (whole.fault, whole.num_tokens, whole.echoes) == ("", 2, {SQL})
    assert read(request, exchange(event("a ") + b"data: [DONE]\n\n"), 0.0).fault == "incomplete"
    assert read(request, exchange(event("a ")), 0.0).fault == "stream without end"
    broken = read(request, exchange(event("a ") + b'data: {"error": {"message": "gone"}}\n\n'), 0.0)
    assert broken.fault == "error in the stream"
    assert "gone" in broken.excerpt


def test_whole_answers_are_read() -> None:
    request = asked("expert", ("sql", 0))
    good = {"model": "m", "choices": [{"message": {"content": "a b"}}]}
    assert read(request, exchange(orjson.dumps(good)), 0.0).fault == ""
    assert read(request, exchange(orjson.dumps(good | {"model": SQL})), 0.0).fault == "another model in the answer"
    assert read(request, exchange(b"<html>"), 0.0).fault == "not a chat completion"
    assert read(request, exchange(b"{}", 503), 0.0).fault == "status 503"
