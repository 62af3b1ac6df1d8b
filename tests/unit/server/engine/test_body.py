"""Bodies: the model is replaced, everything else stays as it was."""

import itertools
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.body import EventSplitter, JsonBody, ModelRewriter, parse_body
from server.errors import BadRequest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=12,
)


@given(fields=st.dictionaries(st.text(max_size=8) | st.just("model"), JSON, max_size=6), name=st.text(max_size=20))
def test_only_model_changes(fields: dict[str, object], name: str) -> None:
    fields = fields | {"model": "asked"}
    changed = orjson.loads(parse_body(orjson.dumps(fields)).with_model(name))
    assert changed == fields | {"model": name}


def test_bytes_outside_model_are_untouched() -> None:
    raw = b'{ "temperature" : 1.0e0, "model":  "auto" ,"big": 123456789012345678901234567890, "u": "\\u00e9" }'
    assert parse_body(raw).with_model("sql@1f3a9c02") == raw.replace(b'"auto"', b'"sql@1f3a9c02"')


@pytest.mark.parametrize(
    "raw",
    [
        b'{"tool": {"model": "x"}, "model": "auto"}',
        b'{"model": "auto", "tool": {"model": "auto"}}',
        b'{"mod\\u0065l": "auto", "tool": {"model": "auto"}}',
        b'{"messages": []}',
        b'{"model": null}',
    ],
)
def test_only_the_top_level_model_changes(raw: bytes) -> None:
    changed = orjson.loads(parse_body(raw).with_model("new"))
    original = orjson.loads(raw)
    assert changed["model"] == "new"
    assert changed.get("tool") == original.get("tool")


@pytest.mark.parametrize(
    ("raw", "hint"),
    [
        (b"", "not valid JSON"),
        (b"{", "line 1"),
        (b"[1]", "an array"),
        (b'"text"', "a string"),
        (b"null", "null"),
        (b'{"model": 3}', "'model' must be a string"),
        (b'{"model": ["a"]}', "'model' must be a string"),
        (b'{"a": "\xff"}', "not valid JSON"),
    ],
)
def test_bad_bodies_are_named(raw: bytes, hint: str) -> None:
    with pytest.raises(BadRequest, match=hint):
        parse_body(raw)


def test_model_in_answers_is_what_was_asked() -> None:
    rewrite = ModelRewriter("sql@1f3a9c02", "auto")
    payload = b'{"model":"sql@1f3a9c02","text":"\\"model\\":\\"sql@1f3a9c02\\""}'
    assert rewrite(payload) == b'{"model":"auto","text":"\\"model\\":\\"sql@1f3a9c02\\""}'


@given(texts=st.lists(st.text(max_size=10), max_size=8), cuts=st.lists(st.integers(0, 400), max_size=12))
def test_events_come_out_whole_however_they_were_cut(texts: list[str], cuts: list[int]) -> None:
    stream = b"".join(b"data: " + orjson.dumps(text) + b"\n\n" for text in texts)
    edges = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    splitter = EventSplitter()
    out = [splitter.feed(stream[a:b]) for a, b in itertools.pairwise(edges)]
    assert b"".join(out) + splitter.rest() == stream
    assert all(part.endswith(b"\n\n") for part in out if part)


def test_an_endless_event_is_not_held_for_ever() -> None:
    splitter = EventSplitter(max_event_bytes=10)
    assert splitter.feed(b"x" * 9) == b""
    assert splitter.feed(b"y") == b"x" * 9 + b"y"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"stream": True, "messages": []}, True),
        ({"stream": True, "prompt": "x", "stream_options": None}, True),
        ({"stream": True, "messages": [], "stream_options": {"include_usage": True}}, False),
        ({"stream": False, "messages": []}, False),
        ({"stream": True, "input": "x"}, False),
    ],
)
def test_usage_is_asked_for_only_where_it_can_be_hidden_again(fields: dict[str, object], expected: bool) -> None:
    body = parse_body(orjson.dumps(fields))
    assert body.wants_no_usage is expected
    assert orjson.loads(body.with_usage().raw)["stream_options"]["include_usage"] is True


TURNS = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]


@pytest.mark.parametrize(
    ("fields", "turns"),
    [
        ({"messages": TURNS}, TURNS),
        ({"input": TURNS}, TURNS),
        ({"messages": [], "input": TURNS}, TURNS),
        ({"input": "hello"}, []),
        ({"messages": {"role": "user"}}, []),
        ({"prompt": "hello"}, []),
    ],
)
def test_the_turns_of_a_conversation(fields: dict[str, Any], turns: list[Any]) -> None:
    assert JsonBody(b"", fields).turns == turns


@pytest.mark.parametrize(
    ("fields", "max_answer_tokens", "num_answers"),
    [
        ({}, 0, 1),
        ({"max_tokens": 7, "max_completion_tokens": 9, "max_output_tokens": 8}, 9, 1),
        ({"max_output_tokens": 8}, 8, 1),
        ({"max_tokens": "5", "n": 3.0}, 5, 3),  # engines accept both
        ({"max_tokens": 5.5, "n": "many"}, 0, 1),
        ({"max_tokens": -1, "n": -3}, 0, 1),
        ({"max_tokens": float("inf"), "n": None}, 0, 1),
        ({"n": 2, "best_of": 4, "prompt": ["a", "b"]}, 0, 8),
        ({"prompt": [1, 2, 3]}, 0, 1),
        ({"prompt": [[1, 2], [3]]}, 0, 2),
    ],
)
def test_bounds_of_answers(fields: dict[str, Any], max_answer_tokens: int, num_answers: int) -> None:
    body = JsonBody(b"", fields)
    assert (body.max_answer_tokens, body.num_answers) == (max_answer_tokens, num_answers)
