"""A double of a vLLM server: the same HTTP, no model, settable speed.

Product code: load tests and unit tests use it, and it is how to try the gateway without a model. Answers are
deterministic: word i of an answer is ``word<i>``, and the body says twice which model was asked for: in ``model``,
which a gateway rewrites, and in ``system_fingerprint``, which it does not (`FINGERPRINT` and the name), so that a
caller sees which expert answered. It is a plain ASGI application, so that a load test measures the gateway and not
this. What the engine was asked is kept in `seen` (the newest 1000).
"""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from adapters_registry.disk.layout import EXPERT_ID
from server.endpoints import CHAT, ENDPOINTS
from server.engine.body import JsonBody

FINGERPRINT = "fake:"


@dataclass(frozen=True, slots=True)
class Seen:
    """One request that the double got."""

    path: str
    headers: dict[str, str]
    body: bytes


class Slots:
    """The experts that a real engine would have in its slots: the most recently used ones, and how that went.

    Args:
        num: Slots that there are.
    """

    def __init__(self, num: int) -> None:
        self._num = num
        self._experts: dict[str, None] = {}
        self.hits = self.loads = self.evictions = 0

    @property
    def experts(self) -> list[str]:
        """Those that have a slot, by name."""
        return sorted(self._experts)

    def use(self, model: str) -> None:
        """Bring the experts of a recipe in."""
        for expert in EXPERT_ID.findall(model):
            if expert in self._experts:
                del self._experts[expert]
                self.hits += 1
            else:
                self.loads += 1
                if len(self._experts) >= self._num:
                    del self._experts[next(iter(self._experts))]
                    self.evictions += 1
            self._experts[expert] = None

    def forget(self, expert: str) -> None:
        """Free an expert's slot."""
        self._experts.pop(expert, None)

    def metrics(self) -> str:
        """As the plugin shows it to Prometheus."""
        shown = "".join(f'moergate_expert_resident{{expert="{name}"}} 1.0\n' for name in self.experts)
        return (
            f"{shown}moergate_expert_slot_hits_total {float(self.hits)}\n"
            f'moergate_expert_loads_total{{source="disk"}} {float(self.loads)}\n'
            f"moergate_expert_evictions_total {float(self.evictions)}\n"
        )


@dataclass
class FakeEngine:
    """The double.

    Attributes:
        ttft_s: Time before the first token.
        tokens_per_s: Speed after it; 0 means no waiting.
        num_tokens: Length of an answer where ``max_tokens`` is absent.
        known: Names of models that it accepts besides ``base``; None accepts all.
        break_after: Close the connection in the middle after so many tokens of a stream; None never does.
        healthy: What ``/health`` says.
        has_plugin: Whether it says that it executes mixes and gates.
        without_effect: Ids of experts that answer as the base does.
        num_slots: Experts that it says are resident at once; more take turns, at no cost.
        cancelled: Requests whose caller went away before the end.
    """

    ttft_s: float = 0.0
    tokens_per_s: float = 0.0
    num_tokens: int = 16
    known: frozenset[str] | None = None
    break_after: int | None = None
    healthy: bool = True
    has_plugin: bool = True
    without_effect: set[str] = field(default_factory=set)
    num_slots: int = 1024
    cancelled: int = 0
    running: int = 0
    seen: deque[Seen] = field(default_factory=lambda: deque(maxlen=1000))

    def __post_init__(self) -> None:
        self.slots = Slots(self.num_slots)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if method == "GET":
            await self._get(path, send)
            return
        raw = await _read(receive)
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        self.seen.append(Seen(path, headers, raw))
        try:
            body = orjson.loads(raw)
            model = body.get("model") or "base"
        except (orjson.JSONDecodeError, AttributeError):
            await _json(send, {"error": {"message": "bad JSON", "type": "BadRequestError", "code": 400}}, 400)
            return
        endpoint = ENDPOINTS.get(path)
        if endpoint is None or not endpoint.generates:
            await self._post_other(path, body, send)
        elif self.known is not None and model != "base" and model not in self.known:
            message = f"The model `{model}` does not exist."
            await _json(send, {"error": {"message": message, "type": "NotFoundError", "code": 404}}, 404)
        else:
            self.slots.use(model)
            await self._generate(path, body, model, receive, send)

    async def _get(self, path: str, send: Send) -> None:
        if path == "/health":
            await _json(send, {}, 200 if self.healthy else 503)
        elif path == "/v1/models":
            await _json(send, {"object": "list", "data": [{"id": "base", "object": "model"}]})
        elif path == "/metrics":
            names = ",".join(self.slots.experts)
            text = (
                f'vllm:num_requests_running{{engine="0"}} {float(self.running)}\n'
                'vllm:num_requests_waiting{engine="0"} 0.0\n'
                f'vllm:lora_requests_info{{max_lora="8",running_lora_adapters="{names}"}} 1.0\n'
            )
            if self.has_plugin:
                text += 'moergate_plugin_info{vllm="fake"} 1.0\n' + self.slots.metrics()
            await _send(send, text.encode(), 200, b"text/plain")
        else:
            await _json(send, {"detail": "Not Found"}, 404)

    async def _post_other(self, path: str, body: dict[str, Any], send: Send) -> None:
        if path == "/v1/unload_lora_adapter":
            self.slots.forget(str(body.get("lora_name")))
            await _json(send, {"status": "ok"})
        elif path == "/detokenize":
            await _json(send, {"prompt": " ".join(f"word{i}" for i in body.get("tokens", []))})
        elif path == "/tokenize":
            num = len(_asked_text(body).split())
            await _json(send, {"count": num, "max_model_len": 4096, "tokens": list(range(num))})
        elif path == "/v1/messages/count_tokens":
            await _json(send, {"input_tokens": 7})
        else:
            await _json(send, {"status": "ok"})

    async def _generate(self, path: str, body: dict[str, Any], model: str, receive: Receive, send: Send) -> None:
        num_tokens = JsonBody(b"", body).max_answer_tokens or self.num_tokens
        self.running += 1
        work = asyncio.create_task(self._answer(path, body, model, num_tokens, send))
        gone = asyncio.create_task(_wait_for_disconnect(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self.cancelled += 1
                work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            if not work.cancelled() and (error := work.exception()):
                raise error
        finally:
            self.running -= 1
            gone.cancel()

    async def _answer(self, path: str, body: dict[str, Any], model: str, num_tokens: int, send: Send) -> None:
        if self.ttft_s:
            await asyncio.sleep(self.ttft_s)
        if body.get("stream"):
            await self._stream(path, body, model, num_tokens, send)
            return
        if self.tokens_per_s:
            await asyncio.sleep((num_tokens - 1) / self.tokens_per_s)
        choices = (body.get("structured_outputs") or {}).get("choice")
        text = choices[0] if choices else " ".join(f"word{i}" for i in range(num_tokens))
        usage = {"prompt_tokens": 5, "total_tokens": 5 + num_tokens, "completion_tokens": num_tokens}
        if path == CHAT.path:
            choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}}
        else:
            choice = {"index": 0, "text": text}
        choice["finish_reason"] = "length"
        answer = _head("chat.completion", model) | {"choices": [choice]}
        if body.get("prompt_logprobs") is not None:
            same_as_base = any(expert in self.without_effect for expert in EXPERT_ID.findall(model))
            answer["prompt_logprobs"] = _prompt_logprobs("base" if same_as_base else model, body)
        await _json(send, answer | {"usage": usage})

    async def _stream(self, path: str, body: dict[str, Any], model: str, num_tokens: int, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        is_chat = path == CHAT.path
        head = _head("chat.completion.chunk", model)
        async for index in self._paced(num_tokens):
            if index == self.break_after:
                raise ConnectionAbortedError("the double breaks off, as it was told")
            delta: dict[str, Any] = {"delta": {"content": f"word{index} "}} if is_chat else {"text": f"word{index} "}
            choice = {"index": 0, **delta, "finish_reason": "length" if index == num_tokens - 1 else None}
            await _event(send, orjson.dumps(head | {"choices": [choice]}))
        if (body.get("stream_options") or {}).get("include_usage"):
            usage = {"prompt_tokens": 5, "total_tokens": 5 + num_tokens, "completion_tokens": num_tokens}
            await _event(send, orjson.dumps(head | {"choices": [], "usage": usage}))
        await _event(send, b"[DONE]")
        await send({"type": "http.response.body", "body": b""})

    async def _paced(self, num_tokens: int) -> AsyncIterator[int]:
        for index in range(num_tokens):
            if index and self.tokens_per_s:
                await asyncio.sleep(1 / self.tokens_per_s)
            yield index


def _head(kind: str, model: str) -> dict[str, Any]:
    """How every answer and event begins."""
    named = {"model": model, "system_fingerprint": FINGERPRINT + model}
    return {"id": "fake-1", "object": kind, "created": 1, **named}


def _asked_text(body: dict[str, Any]) -> str:
    messages = body.get("messages") or [{"content": body.get("prompt", "")}]
    return " ".join(str(message.get("content", "")) for message in messages)


def _prompt_logprobs(model: str, body: dict[str, Any]) -> list[dict[str, Any] | None]:
    """One token a word; each costs as many nats as the model's name has letters and a bit by its hash, so that models
    differ."""
    words = _asked_text(body).split()
    logprob = -0.1 * len(model) - zlib.crc32(model.encode()) / 2**26
    place = {"0": {"logprob": logprob, "rank": 1, "decoded_token": "word"}}
    return [None, *([place] * (len(words) - 1))]


async def _read(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if not message.get("more_body"):
            return body


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _event(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})


async def _json(send: Send, value: Any, status: int = 200) -> None:
    await _send(send, orjson.dumps(value), status, b"application/json")


async def _send(send: Send, body: bytes, status: int, content_type: bytes) -> None:
    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
