"""The view of a request: the short text that a router sees, from a parsed JSON body.

The view of a single prompt without system text is that prompt. Otherwise the newest user turn comes first and
dominates, because sentence encoders average over tokens, and they read about 1,000 characters (256 tokens):

    newest user turn       up to `MAX_CHARS`; a longer one keeps its beginning and its end, 3 : 2, because instructions
                           come before or after long material
    system text            from its beginning, at most half as long as the newest turn (but 80 to 300 characters);
                           sentences that fit any assistant ("You are a helpful assistant.") are dropped, because they
                           would make all prompts similar
    the user turn before   only if the newest has under 60 characters ("and in French?"), within the length that the
                           system text did not use

Consecutive user messages are one turn. Assistant and tool messages are ignored. Parts that are not text are counted.
For a list of prompts (completions) the first with text represents all: they go to one expert anyway, and the prompts of
a batch are similar. Prompts of token ids are returned for the caller to decode, or to abstain.

Nothing here raises: a body of the wrong form gives an empty view, and the engine then reports what is wrong with it.
Examples of experts must go through `example_view` before they are embedded, so that both sides are cut in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

MAX_CHARS = 1_000
_MIN_CONTEXT_CHARS, _MAX_CONTEXT_CHARS = 80, 300
_SHORT_TURN_CHARS = 60
_MAX_TOKEN_IDS = 2_048
_GAP = " … "

_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_ANY_ASSISTANT = frozenset(
    """
    you are is am be a an the as ai assistant chatbot bot agent helpful friendly polite honest harmless kind
    useful smart intelligent large language model llm trained created made developed built by named called
    your name to and of for who that can in please always very question questions user users user's answer
    answers respond response responses reply replies help helps assist with concise concisely brief briefly
    clear clearly accurate accurately safely safe good best knowledge cutoff current date following i you're
    its it chatgpt gpt claude gemini qwen llama mistral mixtral smollm gemma phi deepseek copilot openai
    anthropic alibaba cloud meta google deepmind microsoft hugging face
    """.split()
)


@dataclass(frozen=True, slots=True)
class View:
    """The part of a request that a router may see.

    Attributes:
        text: Text to be embedded; empty if the request has none.
        token_ids: A prompt of token ids, to be decoded with the base model's tokenizer; None for other prompts.
        num_ignored_parts: Number of content parts that are not text (images, audio, files).
    """

    text: str = ""
    token_ids: tuple[int, ...] | None = None
    num_ignored_parts: int = 0


EMPTY = View()


def chat_view(body: object) -> View:
    """Read OpenAI chat completions: `messages`."""
    return _conversation(_items(body, "messages"), ())


def completion_view(body: object) -> View:
    """Read OpenAI completions: `prompt` as text, texts, token ids, or lists of token ids."""
    prompt = _get(body, "prompt")
    prompts = prompt if isinstance(prompt, list) and not _token_ids(prompt) else [prompt]
    for one in prompts:
        if isinstance(one, str) and one.strip():
            return View(text=excerpt(one))
        if ids := _token_ids(one):
            return View(token_ids=ids)
    return EMPTY


def responses_view(body: object) -> View:
    """Read OpenAI responses: `instructions`, and `input` as text or items."""
    given = _get(body, "input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else _list(given)
    system = _get(body, "instructions")
    return _conversation(items, (system,) if isinstance(system, str) else ())


def messages_view(body: object) -> View:
    """Read Anthropic messages: `system` as text or blocks, and `messages`."""
    system, num_ignored = _text_of(_get(body, "system"))
    view = _conversation(_items(body, "messages"), (system,))
    return replace(view, num_ignored_parts=view.num_ignored_parts + num_ignored)


def example_view(prompt: str) -> str:
    """Return an expert's example as it must be embedded, cut like a prompt."""
    return excerpt(prompt)


# -- from a conversation to a text --------------------------------------------------------------------------------


def _conversation(items: list[Any], system_texts: tuple[str, ...]) -> View:
    system, turns, num_ignored = list(system_texts), [""], 0
    for item in items:
        if not isinstance(item, dict) or item.get("type", "message") != "message":
            turns += [""] if turns[-1] else []
            continue
        text, num_others = _text_of(item.get("content"))
        role = item.get("role")
        if role in ("system", "developer"):
            system.append(text)
        elif role == "user":
            turns[-1] = f"{turns[-1]}\n{text}".strip()
            num_ignored += num_others
        elif turns[-1]:
            turns.append("")
    turns = [turn for turn in turns if turn]
    system_text = "\n".join(text for text in system if text.strip())
    return View(text=_compose(system_text, turns), num_ignored_parts=num_ignored)


def _compose(system: str, turns: list[str]) -> str:
    """Compose the view, newest turn first."""
    if not turns:
        return excerpt(specific(system))
    newest = turns[-1]
    if not system and len(turns) == 1:
        return excerpt(newest)
    room = min(max(len(newest) // 2, _MIN_CONTEXT_CHARS), _MAX_CONTEXT_CHARS)
    context = [_beginning(specific(system[: 10 * MAX_CHARS]), room)]
    room -= len(context[0])
    if len(newest) < _SHORT_TURN_CHARS and len(turns) > 1 and room > 20:
        context.append(_beginning(turns[-2], room))
    rest = "\n".join(text for text in context if text)
    return f"{excerpt(newest, MAX_CHARS - len(rest) - 1)}\n{rest}" if rest else excerpt(newest)


def specific(system: str) -> str:
    """Return the system text without the sentences that fit any assistant."""
    sentences = _SENTENCE.split(system)
    return " ".join(sentence for sentence in sentences if not _suits_any_assistant(sentence)).strip()


def _suits_any_assistant(sentence: str) -> bool:
    words = _WORD.findall(sentence.lower())
    return all(word in _ANY_ASSISTANT or word.isdigit() for word in words)


def excerpt(text: str, max_chars: int = MAX_CHARS) -> str:
    """Return the text, or if it is too long its beginning and its end, 3 : 2, with a gap between them."""
    text = text.strip()
    if len(text) <= max_chars:
        return text
    num_tail = (max_chars - len(_GAP)) * 2 // 5
    num_head = max_chars - len(_GAP) - num_tail
    return text[:num_head].rstrip() + _GAP + text[len(text) - num_tail :].lstrip()


def _beginning(text: str, max_chars: int) -> str:
    """Return up to `max_chars` of the beginning, cut between words if possible."""
    text = text.strip()
    if len(text) <= max_chars:
        return text
    head, space, _ = text[: max_chars + 1].rpartition(" ")
    return head.rstrip() if space and len(head) > max_chars // 2 else text[:max_chars]


# -- from JSON to parts -------------------------------------------------------------------------------------------


def _text_of(content: object) -> tuple[str, int]:
    """Return the text of a content (a string, parts, or null), and the number of parts that are not text."""
    if isinstance(content, str):
        return content.strip(), 0
    texts, num_ignored = [], 0
    for part in _parts(content):
        text = part if isinstance(part, str) else _get(part, "text")
        kind = _get(part, "type") if isinstance(part, dict) else "text"
        if isinstance(text, str) and kind in (None, "text", "input_text"):
            texts.append(text.strip())
        else:
            num_ignored += 1
    return "\n".join(text for text in texts if text), num_ignored


def _parts(content: object) -> Iterator[object]:
    yield from content if isinstance(content, list) else [content] if isinstance(content, dict) else []


def _token_ids(prompt: object) -> tuple[int, ...] | None:
    """Return a list of token ids, without its middle if it is very long; None for anything else."""
    if not isinstance(prompt, list) or not prompt:
        return None
    half = _MAX_TOKEN_IDS // 2
    kept = prompt if len(prompt) <= _MAX_TOKEN_IDS else prompt[:half] + prompt[-half:]
    if all(type(token) is int and 0 <= token < 2**31 for token in kept):
        return tuple(kept)
    return None


def _items(body: object, name: str) -> list[Any]:
    return _list(_get(body, name))


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _get(body: object, name: str) -> Any:
    return body.get(name) if isinstance(body, dict) else None
