"""What the gateway's process and the metrics say while a phase runs."""

from __future__ import annotations

import contextlib
import http.client
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from bench.procfs import Process

from load.stack import Stack

_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{[^}]*\})? ([0-9.e+-]+|NaN)$", re.MULTILINE)


@dataclass(slots=True)
class Usage:
    """Samples of the gateway's process; one number a sample in every list.

    Attributes:
        at: ``time.perf_counter()``.
        rss_mib: Resident set.
        fds: Open files and sockets.
        cpu_s: CPU time so far, of the process that ran then.
        pid: Which process it was.
        residency: Slot hits, loads and evictions that the engine counted meanwhile.
    """

    at: list[float] = field(default_factory=list)
    rss_mib: list[float] = field(default_factory=list)
    fds: list[int] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    pid: list[int] = field(default_factory=list)
    residency: dict[str, float] = field(default_factory=dict)

    @property
    def cores_busy(self) -> float:
        """CPU seconds a second, while one process ran throughout; NaN else."""
        if len(self.at) < 2 or len(set(self.pid)) > 1:
            return float("nan")
        return (self.cpu_s[-1] - self.cpu_s[0]) / (self.at[-1] - self.at[0])

    @property
    def hit_share(self) -> float:
        """Share of uses of an expert in which it was in its slot; NaN if the engine does not say."""
        hits, loads = self.residency.get("hits", 0.0), self.residency.get("loads", 0.0)
        return hits / (hits + loads) if hits + loads else float("nan")


@contextlib.contextmanager
def watching(stack: Stack, every_s: float) -> Iterator[Usage]:
    """Sample the gateway of a stack while the block runs; a process that is down is left out."""
    usage = Usage()
    stop = threading.Event()

    def sample() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError, ValueError):
                process = Process(stack.gateway.pid)
                found = process.rss_mib(), process.num_fds(), process.cpu_seconds()
                usage.at.append(time.perf_counter())
                usage.rss_mib.append(found[0])
                usage.fds.append(found[1])
                usage.cpu_s.append(found[2])
                usage.pid.append(process.pid)
            stop.wait(every_s)

    before = residency(stack.engine_port)
    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield usage
    finally:
        stop.set()
        thread.join()
        after = residency(stack.engine_port)
        is_same = all(after.get(name, 0.0) >= value for name, value in before.items())
        usage.residency = {name: value - before.get(name, 0.0) * is_same for name, value in after.items()}


def residency(port: int) -> dict[str, float]:
    """What an engine counted so far: hits, loads and evictions of slots; empty if it cannot be asked."""
    names = {
        "moergate_expert_slot_hits_total": "hits",
        "moergate_expert_loads_total": "loads",
        "moergate_expert_evictions_total": "evictions",
    }
    found: dict[str, float] = {}
    with contextlib.suppress(OSError, http.client.HTTPException):
        for name, value in _SAMPLE.findall(_metrics(port)):
            if name in names:
                found[names[name]] = found.get(names[name], 0.0) + float(value)
    return found


def _metrics(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode("utf-8", "replace")
    finally:
        connection.close()
