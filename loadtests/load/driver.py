"""The driver: one phase of load on one gateway, in a process of its own: ``python -m load.driver SPEC RESULT``.

Sends requests when they are due, changes the library meanwhile if it is told to, and judges every answer: is it whole,
and did the experts make it that should have. It knows because it makes all changes itself. Says ``started`` on standard
output when it begins to send.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import uvloop
from bench.arrivals import schedule
from bench.client import Client
from bench.loops import closed_loop, open_loop
from bench.traffic import PATH

from load.adapters import Template
from load.admin import UNKNOWN, Admin
from load.asked import Answered, Asked, judge, read
from load.changes import Changes
from load.mix import Draw
from load.phase import Fault, LoadResult, LoadSpec
from load.timeline import Timeline

MAX_FAULTS = 10_000
_BURST_SHARE = 0.2


class Driver:
    """Carries a phase out; use it once."""

    def __init__(self, spec: LoadSpec) -> None:
        address = spec.address
        self._spec = spec
        self._client = Client(address.port, address.host, address.key, tls=address.tls)
        self._timeline = Timeline(spec.library)
        self._draw = Draw(spec.mixture, spec.seed, self._timeline, address.base, address.policy)
        self._started = time.perf_counter()
        self._result = LoadResult(self._started + spec.warmup_s, spec.seconds)
        self._right: Counter[str] = Counter()
        self._undecided: list[tuple[Asked, Answered]] = []

    async def run(self) -> LoadResult:
        """All of it."""
        spec = self._spec
        seconds = spec.warmup_s + spec.seconds
        async with self._changing():
            if spec.rate is None:
                late = await closed_loop(seconds, self._ask, callers=spec.callers, patience_s=spec.patience_s)
                unsent = 0
            else:
                unsent, late = await open_loop(
                    arrivals(spec.rate, seconds, spec.burst, spec.burst_period_s, spec.seed),
                    self._ask,
                    started=self._started,
                    max_under_way=spec.callers,
                    patience_s=spec.patience_s,
                )
        self._result.num_unsent = unsent
        for _ in range(late):
            self._fault(Fault(self._started, time.perf_counter(), "no answer in time", ""))
        for asked, answered in self._undecided:
            self._count(asked, answered, judge(asked, answered, self._timeline))
        self._client.close()
        self._result.num_right = dict(self._right)
        self._result.library = self._timeline.library()
        return self._result

    @contextlib.asynccontextmanager
    async def _changing(self) -> AsyncIterator[None]:
        """The library changes while the block runs."""
        spec = self._spec
        if not spec.changes_per_s:
            yield
            return
        first = spec.mixture.num_experts
        changes = Changes(
            Admin(self._client, Template.load(Path(spec.address.template) if spec.address.template else None)),
            self._timeline,
            self._draw,
            self._result,
            policy=spec.address.policy,
            indexes=list(range(first, first + spec.num_changing)),
            per_s=spec.changes_per_s,
            seed=spec.seed,
        )
        task = asyncio.create_task(changes.run())
        try:
            yield
        finally:
            changes.stop()
            await task

    async def _ask(self, number: int, due: float) -> None:
        asked, body = self._draw.next(number)
        sent = time.perf_counter()
        is_measured = due >= self._result.started
        self._result.num_sent += is_measured
        try:
            exchange = await self._client.post(PATH, body)
        except UNKNOWN as error:
            what = str(error) if isinstance(error, UNKNOWN[0]) else "no connection"
            self._fault(Fault(sent, time.perf_counter(), what, asked.kind))
            return
        answered = read(asked, exchange, sent)
        verdict = judge(asked, answered, self._timeline)
        if verdict != "right":
            self._undecided.append((asked, answered))
            return
        self._count(asked, answered, verdict)
        if is_measured:
            ttft_s, total_s = exchange.first_byte_at - due, exchange.done_at - due
            result = self._result
            result.due.append(round(due - result.started, 4))
            result.ttft_ms.append(round(ttft_s * 1000, 3))
            result.tpot_ms.append(round((total_s - ttft_s) * 1000 / max(1, answered.num_tokens - 1), 4))
            result.total_ms.append(round(total_s * 1000, 3))
            result.lag_ms.append(round((sent - due) * 1000, 3))

    def _count(self, asked: Asked, answered: Answered, verdict: str) -> None:
        self._result.num_echoed += bool(answered.echoes)
        match verdict:
            case "right":
                self._right[asked.kind] += 1
            case "absent":
                self._result.num_absent += 1
            case "changing":
                self._result.num_changing += 1
            case "status 429":
                self._result.num_limited += 1
            case _:
                detail = (
                    f"asked {asked.model}, wanted {asked.experts} {asked.version}, got {answered.recipe}, engine said "
                    f"{sorted(answered.echoes)} {answered.excerpt}"
                )
                self._fault(Fault(answered.sent, answered.done, verdict, asked.kind, detail[:500]))

    def _fault(self, fault: Fault) -> None:
        self._result.num_faults += 1
        if len(self._result.faults) < MAX_FAULTS:
            self._result.faults.append(fault)


def arrivals(rate: float, seconds: float, burst: float, period_s: float, seed: int) -> Iterator[float]:
    """Poisson send times at `rate` on average; in a burst's fifth of each period at `burst` times the rate.

    Raises:
        ValueError: The bursts alone would be more than the whole.
    """
    if burst == 1:
        yield from schedule("poisson", rate, seconds, seed)
        return
    calm = (1 - burst * _BURST_SHARE) / (1 - _BURST_SHARE)
    if calm <= 0:
        raise ValueError(f"burst must be below {1 / _BURST_SHARE:g}")
    start, number = 0.0, 0
    while start < seconds:
        for factor, length in ((burst, _BURST_SHARE * period_s), (calm, (1 - _BURST_SHARE) * period_s)):
            number += 1
            for offset in schedule("poisson", rate * factor, length, seed * 100_003 + number):
                if start + offset >= seconds:
                    return
                yield start + offset
            start += length


def main() -> None:
    """Read the spec, run, write the result."""
    spec_file, result_file = map(Path, sys.argv[1:])
    spec = LoadSpec.load(spec_file.read_bytes())
    gc.freeze()

    async def run() -> LoadResult:
        driver = Driver(spec)
        print("started", flush=True)
        return await driver.run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(run())
    result_file.write_bytes(result.dump())


if __name__ == "__main__":
    main()
