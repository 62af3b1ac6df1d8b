"""The inference endpoints: what the data path must know of each, in one table.

Everything that depends on the endpoint of a request reads an attribute of `Endpoint`; nothing compares paths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from routers.text.request_views import (
    EMPTY,
    View,
    chat_view,
    completion_view,
    messages_view,
    responses_view,
)


def _no_view(_body: object) -> View:
    return EMPTY


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint that answers inference requests.

    Attributes:
        path: URL path; also the metrics' label.
        view: Extracts the text that a router sees from a parsed body.
        generates: Whether requests generate tokens. If so, they count against token limits and are logged as decisions.
        is_routed: Whether a policy is asked. Where every expert answers like the base, none is.
        takes_stream_options: Whether a stream reports its tokens only if ``stream_options`` says so.
        operation: ``gen_ai.operation.name`` of the request's span, if the conventions define one.
    """

    path: str
    view: Callable[[object], View] = _no_view
    generates: bool = False
    is_routed: bool = True
    takes_stream_options: bool = False
    operation: str | None = None


CHAT = Endpoint("/v1/chat/completions", chat_view, generates=True, takes_stream_options=True, operation="chat")
COMPLETIONS = Endpoint(
    "/v1/completions", completion_view, generates=True, takes_stream_options=True, operation="text_completion"
)
RESPONSES = Endpoint("/v1/responses", responses_view, generates=True, operation="chat")
MESSAGES = Endpoint("/v1/messages", messages_view, generates=True, operation="chat")

ENDPOINTS = {
    endpoint.path: endpoint
    for endpoint in (
        CHAT,
        COMPLETIONS,
        RESPONSES,
        MESSAGES,
        Endpoint("/v1/messages/count_tokens", messages_view),
        Endpoint("/tokenize", is_routed=False),
        Endpoint("/detokenize", is_routed=False),
    )
}


def guess_endpoint(body: object) -> Endpoint:
    """The endpoint that a body was most likely written for, judged by its fields.

    An Anthropic body without ``system`` passes for a chat completion. The two views of such a body are equal.
    """
    fields: dict[str, Any] = body if isinstance(body, dict) else {}
    if "messages" in fields:
        return MESSAGES if "system" in fields else CHAT
    return RESPONSES if "input" in fields else COMPLETIONS


def _guessed_view(body: object) -> View:
    return guess_endpoint(body).view(body)


EXPLANATION = Endpoint("/v1/route", _guessed_view)
"""The endpoint of an explanation whose caller does not name the endpoint that the body is for."""
