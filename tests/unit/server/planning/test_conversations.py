from __future__ import annotations

from typing import Any

import pytest

from server.engine.body import JsonBody
from server.planning.conversations import Conversation, ConversationMemory
from server.planning.conversations import conversation_of as conversation_of_body


def conversation_of(key_id: str, fields: dict[str, Any], request_id: str) -> Conversation:
    return conversation_of_body(key_id, JsonBody(b"", fields), request_id)


def chat(*turns: str, system: str = "") -> dict[str, Any]:
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(turns)]
    return {"messages": [{"role": "system", "content": system}, *messages] if system else messages}


def test_all_turns_of_a_conversation_are_one() -> None:
    first = conversation_of("key", chat("a"), "1")
    later = conversation_of("key", chat("a", "b", "c"), "2")
    assert (first.digest, first.goes_on, later.goes_on) == (later.digest, False, True)


@pytest.mark.parametrize(
    ("key", "fields"),
    [
        ("other", chat("a")),
        ("key", chat("b")),
        ("key", chat("a", system="be brief")),
        ("key", {"prompt": "a"}),
        ("key", {"messages": "nonsense"}),
        ("key", {"messages": [1, None, {"role": 3}]}),
        ("key", {"messages": [{"role": "assistant", "content": "a"}]}),
        ("key", {"messages": [{"role": "user", "content": "a"}], "prompt_cache_key": "mine"}),
        ("x" * 1000, chat("a")),
    ],
)
def test_others_are_not(key: str, fields: dict[str, Any]) -> None:
    assert conversation_of(key, fields, "1").digest != conversation_of("key", chat("a"), "1").digest


def test_a_name_goes_before_the_text() -> None:
    named = [conversation_of("key", chat(text) | {"prompt_cache_key": "mine"}, text).digest for text in ("a", "b")]
    assert named[0] == named[1]


def test_a_conversation_that_the_engine_keeps_goes_on_by_its_id() -> None:
    kept = [
        conversation_of("key", {"input": text, "conversation": name}, text)
        for text in ("a", "b")
        for name in ("conv_1", {"id": "conv_1"})
    ]
    assert len({each.digest for each in kept}) == 1
    assert all(each.goes_on for each in kept)
    assert not conversation_of("key", {"input": "a", "conversation": {"id": 7}}, "1").goes_on


def test_responses_and_content_parts() -> None:
    parts = [{"type": "input_text", "text": "hello"}]
    fields = {"input": [{"role": "user", "content": parts}, {"role": "assistant", "content": "x"}]}
    assert conversation_of("key", fields, "1").goes_on
    assert conversation_of("key", {"input": "a"}, "1").digest != conversation_of("key", {"input": "a"}, "2").digest


def test_lots_are_even_and_independent() -> None:
    drawn = [conversation_of("key", chat(str(i)), "") for i in range(4000)]
    sql, dates = ([c.lot(name) < 0.25 for c in drawn] for name in ("sql", "dates"))
    assert abs(sum(sql) / 4000 - 0.25) < 0.03
    assert abs(sum(a and b for a, b in zip(sql, dates, strict=True)) / 4000 - 0.0625) < 0.02
    assert drawn[0].lot("sql") == drawn[0].lot("sql")


def test_memory_is_bounded_and_knows_what_is_idle() -> None:
    memory = ConversationMemory(max_remembered=10)
    talks = [Conversation(bytes([i]), True) for i in range(20)]
    for talk in talks:
        memory.put(talk, "version sql", f"sql@{talk.digest.hex()}")
    assert memory.get(talks[0], "version sql") is None
    assert memory.get(talks[19], "version sql") == "sql@13"
    assert memory.get(talks[19], "version dates") is None
    assert memory.get(Conversation(talks[19].digest, False), "version sql") is None
    assert memory.idle_s("sql@13") < 5
    assert memory.idle_s("sql@00") == float("inf")
