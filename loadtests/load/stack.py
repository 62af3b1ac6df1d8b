"""What a load test runs against: a fake engine and a gateway of its own, which can be killed and started again."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.processes import Child, Children, free_port, moergate_command

from load.postgres import Postgres

READY_TIMEOUT_S = 180.0


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How fast the fake engine is, and how many experts it says are resident at once."""

    ttft_ms: float = 5.0
    tokens_per_s: float = 500.0
    slots: int = 64


@dataclass(frozen=True, slots=True)
class Outage:
    """A time in which something was down by intention, in seconds of ``time.perf_counter()``."""

    what: str
    since: float
    until: float


@dataclass(slots=True)
class Stack:
    """A gateway in front of a fake engine; both keep their ports over restarts.

    Args:
        children: Ends everything but the database.
        folder: Logs and the gateway's home.
        engine_options: Of the fake engine.
        gateway_arguments: More for ``moergate serve``.
        gateway_cores: Processors for the gateway alone; None shares all.
        database: Of the gateway; None lets it have its own in its home.
    """

    children: Children
    folder: Path
    engine_options: EngineOptions = EngineOptions()
    gateway_arguments: Sequence[str] = ()
    gateway_cores: frozenset[int] | None = None
    database: Postgres | None = None
    outages: list[Outage] = field(default_factory=list)
    _num_starts: int = 0
    _down_since: dict[str, float] = field(default_factory=dict)
    engine: Child = field(init=False)
    gateway: Child = field(init=False)

    def __post_init__(self) -> None:
        self._engine_port = free_port()
        self._gateway_port = free_port()
        self.start_engine()
        self.start_gateway()

    _engine_port: int = field(init=False)
    _gateway_port: int = field(init=False)

    @property
    def home(self) -> Path:
        """The gateway's home folder."""
        return self.folder / "home"

    @property
    def port(self) -> int:
        """The gateway's."""
        return self._gateway_port

    @property
    def engine_port(self) -> int:
        """The fake engine's."""
        return self._engine_port

    def start_engine(self) -> None:
        """Start the engine, and wait until it answers."""
        options = self.engine_options
        command = [
            *moergate_command(), "fake-engine", "--port", str(self._engine_port), "--ttft-ms", str(options.ttft_ms),
            "--tokens-per-s", str(options.tokens_per_s), "--slots", str(options.slots),
        ]  # fmt: skip
        self.engine = self._start("engine", command, self._engine_port, "/health", None)

    def start_gateway(self) -> None:
        """Start the gateway, and wait until it is ready."""
        command = [
            *moergate_command(), "serve", "--port", str(self._gateway_port), "--home", str(self.home),
            "--engine-url", f"http://127.0.0.1:{self._engine_port}", "--embedder", "hashing", *self.gateway_arguments,
            *(["--database-url", self.database.url] if self.database else []),
        ]  # fmt: skip
        self.gateway = self._start("gateway", command, self._gateway_port, "/readyz", self.gateway_cores)

    def kill_engine(self) -> None:
        """Kill the engine; until it is started again and the gateway sees it, 503 are to be expected."""
        self._down_since["engine"] = time.perf_counter()
        self.engine.kill()

    def kill_gateway(self) -> None:
        """Kill the gateway as a crash would."""
        self._down_since["gateway"] = time.perf_counter()
        self.gateway.kill()

    def kill_database(self) -> None:
        """Kill the database; until it is started again, orders get 503, and one that was under way may be done."""
        self._down_since["database"] = time.perf_counter()
        assert self.database is not None  # noqa: S101
        self.database.kill()

    def start_database(self) -> None:
        """Start the database again, and wait until it has recovered."""
        assert self.database is not None  # noqa: S101
        self.database.start()

    def back(self, what: str) -> None:
        """What was killed is back, and the gateway is ready again: no more excuses from here on."""
        self.gateway.wait_ready("/readyz", READY_TIMEOUT_S)
        self.outages.append(Outage(what, self._down_since.pop(what), time.perf_counter()))

    def _start(self, name: str, command: Sequence[str], port: int, ready: str, cores: frozenset[int] | None) -> Child:
        self._num_starts += 1
        name = f"{name}-{self._num_starts}"
        return self.children.start(name, command, port, ready, READY_TIMEOUT_S, cores)


def split_cores(pin: bool) -> frozenset[int] | None:
    """Half of the processors for the gateway, and this process on the others; None if they are shared."""
    cores = sorted(os.sched_getaffinity(0))
    if not pin or len(cores) < 2:
        return None
    mine, theirs = cores[: len(cores) // 2], cores[len(cores) // 2 :]
    os.sched_setaffinity(0, mine)
    return frozenset(theirs)
