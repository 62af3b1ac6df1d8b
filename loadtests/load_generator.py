"""The load generator: one phase of load on one target, in a process of its own: ``load_generator.py SPEC RESULT``.

Reads a `PhaseSpec` as JSON from one file and writes a `PhaseResult` as JSON to another. In an open loop requests are
sent when the schedule says so, however slow the answers are, and times count from the intended moment, so that a target
that falls behind cannot hide it. Bounded: it sends for so many seconds, waits for the last answers for so many, and
ends.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import uvloop
from bench.arrivals import schedule
from bench.client import Client, ConnectionLost, Exchange
from bench.loops import closed_loop, open_loop
from bench.phase import PhaseResult, PhaseSpec
from bench.traffic import PATH


class Recorder:
    """Collects answers as they come, checked."""

    def __init__(self, spec: PhaseSpec, started: float) -> None:
        self._spec = spec
        self._measure_from = started + spec.warmup_s
        self._num_measured = 0
        self._num_good = 0
        self.errors: Counter[str] = Counter()
        self.latency_ms: list[float] = []
        self.ttft_ms: list[float] = []
        self.overhead_ms: list[float] = []
        self.lag_ms: list[float] = []

    def add(self, exchange: Exchange, intended: float, sent: float) -> None:
        """Check an answer and take its times."""
        fault = self._spec.workload.fault(exchange)
        if fault:
            self.errors[fault] += 1
            return
        self._num_good += 1
        if exchange.done_at >= self._measure_from and exchange.done_at < self._measure_from + self._spec.seconds:
            self._num_measured += 1
        if intended < self._measure_from:
            return
        self.latency_ms.append((exchange.done_at - intended) * 1000)
        self.ttft_ms.append((exchange.first_byte_at - intended) * 1000)
        self.lag_ms.append((sent - intended) * 1000)
        if exchange.overhead_ms is not None:
            self.overhead_ms.append(exchange.overhead_ms)

    def result(self) -> PhaseResult:
        """Everything so far."""
        return PhaseResult(
            num_good=self._num_good,
            errors=dict(self.errors),
            good_per_s=self._num_measured / self._spec.seconds,
            latency_ms=self.latency_ms,
            ttft_ms=self.ttft_ms,
            overhead_ms=self.overhead_ms,
            lag_ms=self.lag_ms,
        )


async def run(spec: PhaseSpec) -> PhaseResult:
    """Carry a phase out."""
    client = Client(spec.port)
    recorder = Recorder(spec, time.perf_counter())
    ask = partial(_ask, spec, client, recorder)
    try:
        if spec.rate is None:
            seconds = spec.warmup_s + spec.seconds
            num_late = await closed_loop(seconds, ask, callers=spec.concurrency, patience_s=spec.patience_s)
        else:
            times = schedule(spec.arrivals, spec.rate, spec.warmup_s + spec.seconds, spec.workload.seed)
            num_unsent, num_late = await open_loop(
                times,
                ask,
                started=time.perf_counter(),
                max_under_way=spec.concurrency,
                patience_s=spec.patience_s,
            )
            recorder.errors += Counter({"not sent, too many under way": num_unsent})
        recorder.errors += Counter({"no answer in time": num_late})
    finally:
        client.close()
    return recorder.result()


async def _ask(spec: PhaseSpec, client: Client, recorder: Recorder, number: int, intended: float) -> None:
    body = spec.workload.body(number)
    sent = time.perf_counter()
    try:
        exchange = await client.post(PATH, body)
    except ConnectionLost as error:
        recorder.errors[str(error)] += 1
    except OSError as error:
        recorder.errors[type(error).__name__] += 1
    else:
        recorder.add(exchange, intended, sent)


def main() -> None:
    """Read the spec, run, write the result."""
    spec_file, result_file = map(Path, sys.argv[1:])
    spec = PhaseSpec.load(spec_file.read_bytes())
    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(run(spec))
    result_file.write_bytes(result.dump())


if __name__ == "__main__":
    main()
