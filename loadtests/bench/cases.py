"""What is compared, and the figures of one case over the rounds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from bench.phase import PhaseResult
from bench.procfs import Process
from bench.stats import Spread, percentile
from bench.traffic import Prompts

DIRECT = "direct"
BARE = "bare proxy"
OFF = "gateway, routing off"
CACHED = "gateway, routed, cached prompts"
FRESH = "gateway, routed, fresh prompts"


@dataclass(frozen=True, slots=True)
class Target:
    """One way to the engine.

    Attributes:
        name: In the tables.
        port: Where it listens.
        process: What does the work between caller and engine; for ``direct`` the engine itself.
        model: What is asked of it.
        prompts: Which prompts.
    """

    name: str
    port: int
    process: Process
    model: str
    prompts: Prompts


@dataclass(frozen=True, slots=True)
class Case:
    """A target with a kind of answer."""

    target: Target
    stream: bool

    @property
    def answers(self) -> str:
        """The kind of answer, for the tables."""
        return "stream" if self.stream else "whole"


@dataclass(slots=True)
class Capacity:
    """A case in a closed loop; one number a round."""

    per_s: list[float] = field(default_factory=list)
    per_core: list[float] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    peak_rss_mib: float = 0.0

    def add(self, result: PhaseResult, cpu_s: float, seconds: float) -> None:
        """Take a round in, which took `seconds` of sending and `cpu_s` of the target's CPU time."""
        self.per_s.append(result.good_per_s)
        self.per_core.append(per_core(result, cpu_s))
        self.cores.append(cpu_s / seconds)
        self.errors.update(result.errors)


@dataclass(slots=True)
class Latency:
    """A case in an open loop at one rate, with the direct way at the same rate beside it; one number a round, in ms."""

    rate: float
    p50: list[float] = field(default_factory=list)
    p90: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    ttft_p50: list[float] = field(default_factory=list)
    ttft_p99: list[float] = field(default_factory=list)
    overhead_p50: list[float] = field(default_factory=list)
    overhead_p99: list[float] = field(default_factory=list)
    ttft_overhead_p50: list[float] = field(default_factory=list)
    own_p50: list[float] = field(default_factory=list)
    own_p99: list[float] = field(default_factory=list)
    lag_p50: list[float] = field(default_factory=list)
    per_core: list[float] = field(default_factory=list)
    num_requests: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, result: PhaseResult, direct: PhaseResult, cpu_s: float) -> None:
        """Take a round in; overhead is the difference of the two distributions' percentiles."""
        self.p50.append(percentile(result.latency_ms, 50))
        self.p90.append(percentile(result.latency_ms, 90))
        self.p99.append(percentile(result.latency_ms, 99))
        self.ttft_p50.append(percentile(result.ttft_ms, 50))
        self.ttft_p99.append(percentile(result.ttft_ms, 99))
        self.overhead_p50.append(self.p50[-1] - percentile(direct.latency_ms, 50))
        self.overhead_p99.append(self.p99[-1] - percentile(direct.latency_ms, 99))
        self.ttft_overhead_p50.append(self.ttft_p50[-1] - percentile(direct.ttft_ms, 50))
        self.own_p50.append(percentile(result.overhead_ms, 50))
        self.own_p99.append(percentile(result.overhead_ms, 99))
        self.lag_p50.append(percentile(result.lag_ms, 50))
        self.per_core.append(per_core(result, cpu_s))
        self.num_requests += result.num_good + result.num_errors
        self.errors.update(result.errors)


def per_core(result: PhaseResult, cpu_s: float) -> float:
    """Good answers for each second of the target's CPU time; NaN if there was none to see."""
    return result.num_good / cpu_s if cpu_s > 0 else float("nan")


def share_of(case: list[float], floor: list[float]) -> Spread:
    """A case's figure as a percentage of another's, round by round."""
    return Spread.of([100 * ours / theirs for ours, theirs in zip(case, floor, strict=True)])
