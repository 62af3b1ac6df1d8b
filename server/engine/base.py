"""The engine seam: one way to hand a request to whatever runs the model.

An engine gets a parsed body and the recipe to execute, writes the recipe's name into ``model``, and answers
with a status, headers and a stream of bytes. It knows nothing of keys, policies or metrics.
`server.engine.vllm` implements it for any vLLM server over HTTP; the double in `server.engine.fake` is an
HTTP server too, and reached through the same client.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from server.engine.body import JsonBody
from server.engine.recipes import Recipe


class EngineTrace(Protocol):
    """A request's trace, as far as engines take part in it."""

    def attempt(self, replica: str) -> None:
        """A replica is about to be asked; the last one, if any, was not reached."""
        ...

    def headers(self, url: str) -> dict[str, str]:
        """Headers for this attempt, which asks `url`."""
        ...


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A request as an engine gets it.

    Attributes:
        path: Path below the engine's root, with a leading slash.
        body: The caller's body.
        recipe: What to execute.
        request_id: Sent as ``x-request-id``, so that the engine's log can be joined with ours.
        trace: The request's trace, if there is one, so that the engine's own spans join it.
    """

    path: str
    body: JsonBody
    recipe: Recipe
    request_id: str
    trace: EngineTrace | None = None


class EngineResponse(Protocol):
    """An answer under way."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Response headers; names compare without regard to case."""
        ...

    @property
    def model(self) -> str:
        """What the engine calls the model in its answer."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """Body bytes as they arrive; raises `EngineBroke` if the engine breaks off."""
        ...

    async def read(self) -> bytes:
        """The whole body; raises as `chunks`, which must not have been used."""
        ...

    def close(self) -> None:
        """Release the connection; unless the body was read to its end, the engine drops the request."""
        ...


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """Whether the engine takes requests, and if not, why."""

    ready: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Residency:
    """What an engine reports of itself.

    Attributes:
        experts: Those that are resident; of a stock vLLM, those in use now.
        num_running, num_waiting: Its batch and its queue.
        has_plugin: Whether it executes mixes and gates.
    """

    experts: frozenset[str] = frozenset()
    num_running: int = 0
    num_waiting: int = 0
    has_plugin: bool = False


class Engine(Protocol):
    """Something that executes recipes."""

    async def forward(self, request: EngineRequest) -> EngineResponse:
        """Start a request; returns when the engine has sent its headers.

        Raises:
            EngineUnreachable: Not one byte came back, so that another replica may be tried.
        """
        ...

    async def health(self) -> EngineHealth:
        """Ask whether it is ready; never raises."""
        ...

    async def residency(self) -> Residency:
        """What is resident and how much waits; never raises."""
        ...
