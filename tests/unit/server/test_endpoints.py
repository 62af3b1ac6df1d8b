"""The table of endpoints, and which endpoint an explanation is about."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.endpoints import CHAT, COMPLETIONS, ENDPOINTS, EXPLANATION, MESSAGES, RESPONSES, Endpoint, guess_endpoint

USER = [{"role": "user", "content": "14 May 2021"}]
SYSTEM = "You translate dates to ISO."


@pytest.mark.parametrize(
    ("path", "generates", "is_routed", "takes_stream_options", "operation"),
    [
        ("/v1/chat/completions", True, True, True, "chat"),
        ("/v1/completions", True, True, True, "text_completion"),
        ("/v1/responses", True, True, False, "chat"),
        ("/v1/messages", True, True, False, "chat"),
        ("/v1/messages/count_tokens", False, True, False, None),
        ("/tokenize", False, False, False, None),
        ("/detokenize", False, False, False, None),
    ],
)
def test_what_each_endpoint_is(
    path: str, generates: bool, is_routed: bool, takes_stream_options: bool, operation: str | None
) -> None:
    endpoint = ENDPOINTS[path]
    assert endpoint.path == path
    assert (endpoint.generates, endpoint.is_routed) == (generates, is_routed)
    assert (endpoint.takes_stream_options, endpoint.operation) == (takes_stream_options, operation)
    assert len(ENDPOINTS) == 7


@pytest.mark.parametrize(
    ("body", "endpoint"),
    [
        ({"messages": USER}, CHAT),
        ({"messages": [{"role": "system", "content": SYSTEM}, *USER]}, CHAT),
        ({"system": SYSTEM, "messages": USER}, MESSAGES),
        ({"system": [{"type": "text", "text": SYSTEM}], "messages": USER}, MESSAGES),
        ({"input": "14 May 2021"}, RESPONSES),
        ({"input": USER, "instructions": SYSTEM}, RESPONSES),
        ({"prompt": "14 May 2021"}, COMPLETIONS),
        ({}, COMPLETIONS),
        ([], COMPLETIONS),
    ],
)
def test_an_explanation_sees_what_the_request_would_be_routed_by(body: Any, endpoint: Endpoint) -> None:
    assert guess_endpoint(body) is endpoint
    assert EXPLANATION.view(body) == endpoint.view(body)


def test_an_anthropic_system_prompt_is_part_of_the_explanation() -> None:
    body = {"system": SYSTEM, "messages": USER}
    assert EXPLANATION.view(body).text == f"14 May 2021\n{SYSTEM}"
    assert CHAT.view(body).text == "14 May 2021"


CONTENT = st.text(max_size=80) | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text()}))
ROLES = st.sampled_from(["user", "assistant", "system"])
TURNS = st.lists(st.fixed_dictionaries({"role": ROLES, "content": CONTENT}), max_size=6)


@given(TURNS, st.none() | CONTENT)
def test_every_anthropic_body_is_explained_by_its_own_view(turns: list[Any], system: Any) -> None:
    """Also without a system prompt, where the body cannot be told from a chat completion's."""
    for body in ({"messages": turns}, {"messages": turns, "system": system}):
        assert EXPLANATION.view(body) == MESSAGES.view(body)
