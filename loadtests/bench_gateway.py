"""What the gateway costs: ``python loadtests/bench_gateway.py`` compares five ways to one fake engine.

Direct, through a bare proxy on the same stack, through the gateway with routing off, routed with prompts whose
embeddings are cached, and routed with prompts that were never seen. First each in a closed loop, for its saturation
rate and requests a core; then in an open loop at half of that rate, beside the direct way at the same rate. All
variants alternate in several rounds of one run. Only loopback, bounded in time, and every process that is started is
ended. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.cases import BARE, CACHED, DIRECT, FRESH, OFF, Capacity, Case, Latency, Target
from bench.machine import machine_facts, shown_command
from bench.phase import PhaseResult, PhaseSpec
from bench.processes import Child, Children, NotReady, free_port, moergate_command
from bench.procfs import Process
from bench.report import Report
from bench.stats import percentile
from bench.traffic import Workload

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
DEMO_LIBRARY = REPOSITORY / "server" / "demo_library" / "library.json"
MAX_IN_FLIGHT = 1000
LOAD_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    seconds: float
    rounds: int
    rate: float | None
    concurrency: int
    num_tokens: int
    ttft_ms: float
    tokens_per_s: float
    arrivals: str
    embedder: str
    library: Path
    gateway_arg: list[str]
    pin: bool
    out: Path | None

    @property
    def warmup_s(self) -> float:
        """Before every measured part."""
        return min(1.0, self.seconds / 4)

    @property
    def target_cores(self) -> frozenset[int] | None:
        """Half of the processors, for what is measured alone; None if it shares all of them."""
        cores = sorted(os.sched_getaffinity(0))
        return frozenset(cores[len(cores) // 2 :]) if self.pin and len(cores) > 1 else None

    @property
    def saturation_s(self) -> float:
        """Length of a closed loop's measured part."""
        return max(1.0, self.seconds / 2)


class Bench:
    """Runs phases and keeps their figures."""

    def __init__(self, options: Options, targets: list[Target], folder: Path) -> None:
        self._options = options
        self._folder = folder
        self._cases = [Case(target, stream) for stream in (False, True) for target in targets]
        self._direct = targets[0]
        self._num_phases = 0
        self.capacity = {case: Capacity() for case in self._cases}
        self.latency: dict[Case, Latency] = {}

    def run(self) -> None:
        """All rounds of both loops."""
        for number in range(self._options.rounds):
            for case in self._cases:
                say(f"round {number + 1}, closed loop: {case.target.name}, {case.answers}")
                result, cpu_s = self._phase(case.target, case.stream, None)
                self.capacity[case].add(result, cpu_s, self._options.warmup_s + self._options.saturation_s)
        rates = self._rates()
        for case, rate in rates.items():
            self.latency[case] = Latency(rate)
        for number in range(self._options.rounds):
            self._open_round(number, rates)
        for case in self._cases:
            self.capacity[case].peak_rss_mib = case.target.process.peak_rss_mib()

    def _open_round(self, number: int, rates: dict[Case, float]) -> None:
        direct: dict[tuple[bool, float], tuple[PhaseResult, float]] = {}
        for case, rate in rates.items():
            key = (case.stream, rate)
            if key not in direct:
                say(f"round {number + 1}, {rate:.0f} req/s: {DIRECT}, {case.answers}")
                direct[key] = self._phase(self._direct, case.stream, rate)
            baseline, cpu_s = direct[key]
            result = baseline
            if case.target is not self._direct:
                say(f"round {number + 1}, {rate:.0f} req/s: {case.target.name}, {case.answers}")
                result, cpu_s = self._phase(case.target, case.stream, rate)
            self.latency[case].add(result, baseline, cpu_s)

    def _rates(self) -> dict[Case, float]:
        """For each case half of the gateway's saturation rate on that path; direct and bare go with routing off."""
        rates: dict[Case, float] = {}
        for case in self._cases:
            measure = case
            if case.target.name in (DIRECT, BARE):
                measure = next(c for c in self._cases if c.target.name == OFF and c.stream == case.stream)
            saturation = percentile(self.capacity[measure].per_s, 50)
            rates[case] = self._options.rate or max(1.0, round(saturation * LOAD_SHARE))
        return rates

    def _phase(self, target: Target, stream: bool, rate: float | None) -> tuple[PhaseResult, float]:
        """Run a phase; returns its result and the CPU time that the target spent meanwhile."""
        self._num_phases += 1
        options = self._options
        workload = Workload(target.model, stream, target.prompts, options.num_tokens, self._num_phases)
        closed = rate is None
        spec = PhaseSpec(
            port=target.port,
            workload=workload,
            seconds=options.saturation_s if closed else options.seconds,
            warmup_s=options.warmup_s,
            rate=rate,
            concurrency=options.concurrency if closed else MAX_IN_FLIGHT,
            arrivals="fixed" if options.arrivals == "fixed" else "poisson",
        )
        before_s = target.process.cpu_seconds()
        spec_file, result_file = self._folder / "spec.json", self._folder / "result.json"
        spec_file.write_bytes(spec.dump())
        subprocess.run(
            [sys.executable, str(HERE / "load_generator.py"), str(spec_file), str(result_file)],
            check=True,
            timeout=spec.warmup_s + spec.seconds + spec.patience_s + 30,
        )
        return PhaseResult.load(result_file.read_bytes()), target.process.cpu_seconds() - before_s


def start_targets(options: Options, children: Children, folder: Path, notes: list[str]) -> list[Target]:
    """Start everything; what cannot be measured is left out with a note."""
    cores = options.target_cores
    if cores:
        os.sched_setaffinity(0, os.sched_getaffinity(0) - cores)  # us, the engine and the load generator
    engine = _start_engine(options, children)
    engine_url = f"http://127.0.0.1:{engine.port}"
    port = free_port()
    command = [sys.executable, str(HERE / "bare_proxy.py"), "--port", str(port), "--engine-url", engine_url]
    bare = children.start("bare-proxy", command, port, "/health", cores=cores)
    start_gateway = partial(_start_gateway, options=options, children=children, folder=folder, cores=cores)
    off = start_gateway("gateway-off", engine_url, ["--embedder", "hashing"])
    targets = [
        Target(DIRECT, engine.port, Process(engine.pid), "base", "few"),
        Target(BARE, bare.port, Process(bare.pid), "base", "few"),
        Target(OFF, off.port, Process(off.pid), "base", "few"),
    ]
    manifests = present_manifests(options.library)
    if len(manifests) < 2:
        notes.append(
            f"Routed cases were left out: {options.library.name} lists fewer than two experts with their files."
        )
        return targets
    library = folder / "library.json"
    library.write_text(json.dumps(manifests), "utf-8")
    arguments = ["--embedder", options.embedder, "--library", str(library)]
    try:
        routed = start_gateway("gateway-routed", engine_url, arguments)
    except NotReady as error:
        notes.append(f"Routed cases were left out: {error}")
        return targets
    notes.append(f"Routed over {len(manifests)} experts, embedder {options.embedder}, router knn.")
    process = Process(routed.pid)
    return [
        *targets,
        Target(CACHED, routed.port, process, "auto", "few"),
        Target(FRESH, routed.port, process, "auto", "fresh"),
    ]


def present_manifests(library: Path) -> list[dict[str, object]]:
    """The manifests of a library.json whose adapters are there, with absolute paths; none if there is no such file."""
    if not library.is_file():
        return []
    present: list[dict[str, object]] = []
    for manifest in json.loads(library.read_text("utf-8")):
        folder = (library.parent / manifest["source"]["path"]).resolve()
        if (folder / "adapter_model.safetensors").is_file() and (folder / "adapter_config.json").is_file():
            present.append(manifest | {"source": {"path": str(folder)}})
    return present


def _start_engine(options: Options, children: Children) -> Child:
    port = free_port()
    command = [
        *moergate_command(), "fake-engine", "--port", str(port),
        "--ttft-ms", str(options.ttft_ms), "--tokens-per-s", str(options.tokens_per_s),
    ]  # fmt: skip
    return children.start("fake-engine", command, port, "/health")


def _start_gateway(
    name: str,
    engine_url: str,
    arguments: list[str],
    *,
    options: Options,
    children: Children,
    folder: Path,
    cores: frozenset[int] | None,
) -> Child:
    port = free_port()
    command = [
        *moergate_command(), "serve", "--port", str(port), "--home", str(folder / name), "--engine-url", engine_url,
        *arguments, *options.gateway_arg,
    ]  # fmt: skip
    return children.start(name, command, port, "/readyz", timeout_s=180, cores=cores)


def describe_run(options: Options) -> dict[str, str]:
    """Machine, versions, commit and command of this run."""
    cores = options.target_cores
    speed = f"{options.tokens_per_s:g} tokens/s" if options.tokens_per_s else "no wait between tokens"
    return machine_facts() | {
        "command": f"`{shown_command('bench_gateway.py', sys.argv[1:])}`",
        "engine": f"fake, {options.ttft_ms:g} ms to the first token, {speed}, {options.num_tokens} tokens an answer",
        "processors": f"{sorted(cores)} for what is measured alone" if cores else "shared by everything",
        "method": f"{options.rounds} rounds of {options.seconds:g} s, {options.arrivals} arrivals, "
        f"{options.concurrency} callers in the closed loop; median (least to largest) over rounds",
    }


def parse_options(arguments: list[str]) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a measured part (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="times that every variant is measured (%(default)s)")
    parser.add_argument("--rate", type=float, help="req/s of the open loop; default: half the saturation rate")
    parser.add_argument("--concurrency", type=int, default=64, help="callers of the closed loop (%(default)s)")
    parser.add_argument("--tokens", dest="num_tokens", type=int, default=16, help="length of an answer (%(default)s)")
    parser.add_argument("--ttft-ms", type=float, default=5.0, help="of the fake engine (%(default)s)")
    parser.add_argument("--tokens-per-s", type=float, default=500.0, help="of the fake engine (%(default)s)")
    parser.add_argument("--arrivals", choices=("poisson", "fixed"), default="poisson", help="of the open loop")
    parser.add_argument("--embedder", default="all-MiniLM-L6-v2", help="of the routed cases (%(default)s)")
    parser.add_argument("--library", type=Path, default=DEMO_LIBRARY, help="library.json of the routed cases")
    parser.add_argument("--gateway-arg", action="append", default=[], help="passed on to moergate serve; repeat")
    parser.add_argument(
        "--pin",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="give what is measured half of the processors for itself (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, help="file for the report; it is printed too")
    parser.add_argument("--quick", action="store_true", help="one short round: does it work, not how fast is it")
    given = vars(parser.parse_args(arguments))
    if given.pop("quick"):
        given |= {"seconds": 1.5, "rounds": 1}
    if given["seconds"] <= 0 or given["rounds"] < 1 or (given["rate"] is not None and given["rate"] <= 0):
        parser.error("--seconds, --rounds and --rate must be above 0")
    return Options(**given)


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def _on_signal(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def main() -> None:
    """Measure and report; the exit code is 1 if any answer was wrong."""
    options = parse_options(sys.argv[1:])
    if not Path("/proc/self/stat").exists():
        sys.exit("This benchmark reads CPU time from /proc, which only Linux has.")
    signal.signal(signal.SIGTERM, _on_signal)
    setup = describe_run(options)
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="moergate-bench-") as name, Children(Path(name)) as children:
        try:
            bench = Bench(options, start_targets(options, children, Path(name), notes), Path(name))
        except NotReady as error:
            sys.exit(str(error))
        bench.run()
    report = Report(setup, bench.capacity, bench.latency, notes).markdown()
    print(report)
    if options.out:
        options.out.write_text(report, "utf-8")
    errors = [figures.errors for figures in bench.capacity.values()]
    if any(errors) or any(figures.errors for figures in bench.latency.values()):
        sys.exit("Some answers were wrong or missing: see the columns 'errors'.")


if __name__ == "__main__":
    main()
