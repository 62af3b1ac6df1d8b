"""What is asked of a gateway over HTTP: its models, decisions, generations, losses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson

from routers.base import Sample
from server.engine.losses import SampleLosses, counting_fields, read_losses, scoring_fields

NUM_TRIES = 4
FIRST_WAIT_S = 1.0
_REFUSALS = (400, 404, 413, 422)


class CompareError(Exception):
    """The gateway cannot be reached, or refuses what is asked; the text says what to do."""


class Refused(CompareError):
    """The gateway answers, but does not execute this model for this prompt: more experts than slots, a long prompt."""


@dataclass(frozen=True, slots=True)
class Models:
    """What a gateway offers.

    Attributes:
        base: Name of the base.
        experts: Ids by name.
        tasks: Ids of experts by the tasks that their cards name, and by their names.
        policies: Names.
    """

    base: str
    experts: Mapping[str, str]
    tasks: Mapping[str, str]
    policies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Generation:
    """An answer, and what it took.

    Attributes:
        ttft_s: Time to the first token.
        total_s: Time to the last.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    ttft_s: float
    total_s: float

    @property
    def s_per_token(self) -> float:
        """Time for each token after the first; 0 if there is none."""
        return (self.total_s - self.ttft_s) / (self.completion_tokens - 1) if self.completion_tokens > 1 else 0.0


class GatewayClient:
    """A gateway; use it as an asynchronous context.

    Args:
        url: Its address.
        key: An API key, if it wants one.
        max_parallel: Requests under way at once.
    """

    def __init__(self, url: str, key: str | None, max_parallel: int) -> None:
        self._url = (url if "//" in url else f"http://{url}").rstrip("/")
        self._headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        self._places = asyncio.Semaphore(max_parallel)
        self._session: aiohttp.ClientSession | None = None
        self._counts: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1800), headers=self._headers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def models(self) -> Models:
        """What there is to compare."""
        listing = (await self._json("GET", "/v1/models"))["data"]
        experts = {entry["id"]: entry["id_with_version"] for entry in listing if entry["kind"] == "expert"}
        tasks = {task: e["id_with_version"] for e in listing if e["kind"] == "expert" for task in e["card"]["tasks"]}
        base = next(entry["id"] for entry in listing if entry["kind"] == "base")
        policies = tuple(entry["id"] for entry in listing if entry["kind"] == "policy")
        return Models(base, experts, tasks | experts, policies)

    async def decide(self, policy: str, prompt: str, task: str, without: str | None) -> dict[str, Any]:
        """How a policy would route a prompt: the answer of ``POST /v1/route``."""
        fields: dict[str, Any] = {
            "model": policy,
            "messages": [{"role": "user", "content": prompt}],
            "task_id": task,
        }
        if without is not None:
            fields["exclude_experts"] = [without]
        async with self._places:
            found: dict[str, Any] = await self._json("POST", "/v1/route", fields)
            return found

    async def generate(self, model: str, prompt: str, max_tokens: int) -> Generation:
        """Greedy answer to one user turn, as a stream."""
        fields = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        async with self._places:
            for attempt in range(NUM_TRIES):
                try:
                    return await self._stream(fields)
                except (aiohttp.ClientError, TimeoutError, _Again) as error:
                    await self._wait(attempt, error)
        raise AssertionError("unreachable")

    async def losses(self, model: str, sample: Sample) -> SampleLosses:
        """Cross-entropies of a sample under a model."""
        async with self._places:
            if sample.prompt not in self._counts:
                counted = await self._json("POST", "/tokenize", {"model": model, **counting_fields(sample)})
                self._counts[sample.prompt] = int(counted["count"])
            fields = {"model": model, **scoring_fields(sample, with_entropy=True)}
            answer = await self._json("POST", "/v1/chat/completions", fields)
        try:
            return read_losses(answer, self._counts[sample.prompt])
        except ValueError as error:
            raise CompareError(f"{model}: {error}") from None

    async def report(self, rows: list[dict[str, Any]]) -> None:
        """Add rows to the gateway's table of scores."""
        await self._json("POST", "/admin/scores", {"rows": rows})

    async def _stream(self, fields: dict[str, Any]) -> Generation:
        started = time.perf_counter()
        first = None
        pieces: list[str] = []
        usage: dict[str, Any] = {}
        async with self._open("POST", "/v1/chat/completions", fields) as response:
            await _check(response, fields["model"])
            async for line in response.content:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                event = orjson.loads(line[6:])
                if "error" in event:
                    raise CompareError(f"{fields['model']}: {event['error'].get('message')}")
                usage = event.get("usage") or usage
                for choice in event.get("choices", []):
                    text = choice.get("delta", {}).get("content")
                    if text:
                        first = first or time.perf_counter()
                        pieces.append(text)
        ended = time.perf_counter()
        return Generation(
            "".join(pieces),
            int(usage.get("prompt_tokens", 0)),
            int(usage.get("completion_tokens", 0)),
            (first or ended) - started,
            ended - started,
        )

    async def _json(self, method: str, path: str, fields: dict[str, Any] | None = None) -> Any:
        for attempt in range(NUM_TRIES):
            try:
                async with self._open(method, path, fields) as response:
                    await _check(response, path)
                    return orjson.loads(await response.read())
            except (aiohttp.ClientError, TimeoutError, _Again) as error:
                await self._wait(attempt, error)
        raise AssertionError("unreachable")

    def _open(self, method: str, path: str, fields: dict[str, Any] | None) -> Any:
        if self._session is None:
            raise RuntimeError("use the client as a context")
        body = None if fields is None else orjson.dumps(fields)
        return self._session.request(method, self._url + path, data=body)

    async def _wait(self, attempt: int, error: Exception) -> None:
        if attempt == NUM_TRIES - 1:
            raise CompareError(
                f"No gateway answers at {self._url} ({error or type(error).__name__}). "
                "Start one with 'moergate serve', or give its address with --url."
            ) from None
        await asyncio.sleep(FIRST_WAIT_S * 2**attempt)


class _Again(Exception):
    """The gateway is busy; trying again may help."""


async def _check(response: aiohttp.ClientResponse, what: str) -> None:
    if response.status < 400:
        return
    raw = await response.read()
    try:
        message = orjson.loads(raw)["error"]["message"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        message = f"status {response.status}"
    if response.status in (429, 502, 503, 504):
        raise _Again(message)
    raise (Refused if response.status in _REFUSALS else CompareError)(f"{what}: {message}")


def losses_as_dict(found: SampleLosses) -> dict[str, float]:
    """For the cache and the table of scores; what is not known is left out."""
    return {name: value for name, value in asdict(found).items() if value == value}
