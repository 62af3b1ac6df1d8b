"""What of a request a router sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routers.text.request_views import (
    MAX_CHARS,
    View,
    chat_view,
    completion_view,
    example_view,
    excerpt,
    messages_view,
    responses_view,
    specific,
)

QUESTION = "Convert 3 May 2021 to ISO 8601, please, and say nothing else about it."


def chat(*messages: tuple[str, Any], **rest: Any) -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": role, "content": content} for role, content in messages], **rest}


# -- the same prompt looks the same everywhere --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("view_of", "body"),
    [
        (chat_view, chat(("user", QUESTION))),
        (chat_view, chat(("user", [{"type": "text", "text": QUESTION}]))),
        (chat_view, chat(("system", "You are a helpful assistant."), ("user", QUESTION))),
        (chat_view, chat(("system", None), ("user", QUESTION))),
        (completion_view, {"prompt": QUESTION}),
        (completion_view, {"prompt": ["", QUESTION, "another"]}),
        (responses_view, {"input": QUESTION}),
        (responses_view, {"input": [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]}),
        (responses_view, {"input": [{"type": "message", "role": "user", "content": QUESTION}]}),
        (messages_view, chat(("user", QUESTION))),
        (messages_view, {"system": [{"type": "text", "text": ""}], **chat(("user", f" {QUESTION}\n"))}),
    ],
)
def test_a_lone_prompt_is_its_own_view(view_of: Callable[[object], View], body: dict[str, Any]) -> None:
    view = view_of(body)
    assert view.text == QUESTION == example_view(QUESTION)
    assert view.token_ids is None
    assert view.num_ignored_parts == 0


# -- conversations ------------------------------------------------------------------------------------------------


def test_the_newest_turn_comes_first_and_dominates() -> None:
    system = "Answer as a lawyer of the city council would. " * 50
    view = chat_view(chat(("system", system), ("user", QUESTION)))
    assert view.text.startswith(QUESTION + "\n")
    assert len(view.text) <= len(QUESTION) + 1 + 80


def test_a_specific_system_text_is_kept_for_a_terse_turn() -> None:
    view = chat_view(chat(("developer", "You turn dates into ISO 8601."), ("user", "3 May 2021")))
    assert view.text == "3 May 2021\nYou turn dates into ISO 8601."


def test_a_short_turn_brings_the_one_before() -> None:
    turns = [("user", "Translate 'cheese' into French."), ("assistant", "fromage"), ("user", "And into Greek?")]
    assert chat_view(chat(*turns)).text == "And into Greek?\nTranslate 'cheese' into French."


def test_a_long_turn_stands_alone() -> None:
    turns = [("user", "Write a poem about the sea."), ("assistant", "…"), ("user", QUESTION)]
    assert chat_view(chat(*turns)).text == QUESTION


def test_consecutive_user_messages_are_one_turn_and_others_are_not_read() -> None:
    view = chat_view(
        chat(
            ("user", "old"),
            ("assistant", "SECRET"),
            ("tool", "SECRET"),
            ("user", "Look at this table of numbers and columns."),
            ("user", "How many rows does it have altogether?"),
            ("assistant", "SECRET prefill"),
        )
    )
    assert view.text == "Look at this table of numbers and columns.\nHow many rows does it have altogether?"


def test_images_are_counted_and_the_last_words_count() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:"}}
    view = chat_view(chat(("user", [{"type": "text", "text": "What is this?"}, picture]), ("assistant", "a cat")))
    assert (view.text, view.num_ignored_parts) == ("What is this?", 1)
    assert chat_view(chat(("user", [picture]))) == View(num_ignored_parts=1)


def test_items_of_responses_that_are_not_messages_separate_turns() -> None:
    items = [
        {"role": "user", "content": "first question, long enough to stand alone, which it should"},
        {"type": "function_call", "name": "f", "arguments": "SECRET"},
        {"type": "function_call_output", "output": "SECRET"},
        {"role": "user", "content": "second question, also long enough to stand alone, as it does"},
    ]
    text = responses_view({"instructions": "You are a helpful assistant.", "input": items}).text
    assert text == items[-1]["content"]


def test_anthropic_tool_results_are_not_read() -> None:
    result = {"type": "tool_result", "tool_use_id": "1", "content": "SECRET"}
    view = messages_view({"system": "You parse logs.", **chat(("user", [result, {"type": "text", "text": "go on"}]))})
    assert view.text == "go on\nYou parse logs."
    assert view.num_ignored_parts == 1


@pytest.mark.parametrize(
    "sentence",
    [
        "You are a helpful assistant.",
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
        "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        "You are ChatGPT, a language model trained by OpenAI.\nKnowledge cutoff: 2024-06\nCurrent date: 2025-01-02",
        "You're a friendly chatbot. Please answer concisely.",
        "",
    ],
)
def test_what_suits_any_assistant_is_dropped(sentence: str) -> None:
    assert specific(sentence) == ""


@pytest.mark.parametrize(
    "sentence", ["You are a SQL expert.", "You are a helpful pirate.", "Du bist ein Assistent.", "Reply in JSON."]
)
def test_what_is_particular_is_kept(sentence: str) -> None:
    assert specific("You are a helpful assistant. " + sentence) == sentence


# -- completions and token ids ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [[5, 6, 7], [[5, 6, 7], [8]]])
def test_token_ids_are_handed_on(prompt: list[Any]) -> None:
    view = completion_view({"prompt": prompt})
    assert (view.text, view.token_ids) == ("", (5, 6, 7))


def test_many_token_ids_are_cut_in_the_middle() -> None:
    ids = completion_view({"prompt": list(range(100_000))}).token_ids
    assert ids is not None
    assert (ids[0], ids[-1], len(ids)) == (0, 99_999, 2_048)


@pytest.mark.parametrize(
    "prompt", [[1, "a"], [True, False], [1.5], [-1], [2**40], [[]], [None], {}, 7, None, ["", " "]]
)
def test_prompts_of_no_form_have_no_view(prompt: Any) -> None:
    view = completion_view({"prompt": prompt})
    assert view.token_ids is None
    assert view.text in ("", "a")


# -- length -------------------------------------------------------------------------------------------------------


def test_of_a_long_text_beginning_and_end_are_kept() -> None:
    text = "START " + "x" * 1_000_000 + " END"
    short = excerpt(text)
    assert len(short) <= MAX_CHARS
    assert short.startswith("START")
    assert short.endswith("END")
    assert excerpt("y" * MAX_CHARS) == "y" * MAX_CHARS


@given(st.text(max_size=3000), st.text(max_size=600), st.text(max_size=600))
@settings(deadline=None)
def test_a_view_is_bounded_and_keeps_the_prompt(prompt: str, system: str, before: str) -> None:
    view = chat_view(chat(("system", system), ("user", before), ("assistant", "ok"), ("user", prompt)))
    assert len(view.text) <= MAX_CHARS
    if 0 < len(prompt.strip()) < 300:
        assert view.text.startswith(prompt.strip())


# -- nothing raises -----------------------------------------------------------------------------------------------

WORDS = ["messages", "role", "user", "system", "content", "type", "text", "input", "prompt", "instructions"]
json_keys = st.sampled_from(WORDS) | st.text(max_size=5)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(json_keys, inner, max_size=5),
    max_leaves=30,
)


@given(body=json_values | st.dictionaries(st.sampled_from(WORDS), json_values))
@settings(deadline=None, max_examples=300)
@pytest.mark.parametrize("view_of", [chat_view, completion_view, responses_view, messages_view])
def test_any_json_has_a_view(view_of: Callable[[object], View], body: Any) -> None:
    view = view_of(body)
    assert isinstance(view, View)
    assert len(view.text) <= MAX_CHARS
    assert view.num_ignored_parts >= 0
