"""What tracing costs: ``python loadtests/bench_tracing.py`` compares one gateway without and with it.

Four gateways before one fake engine: without tracing, with a trace of every request, with a trace of every tenth, and
with a collector that cannot be reached. Each answers the same closed loop; all alternate in several rounds. The figure
is the CPU time that a gateway's process spends on a request, its exporter's thread included, in the round in which it
was least: what else the machine does can only add to it. Needs Linux.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from bench.phase import PhaseResult, PhaseSpec
from bench.processes import Children, free_port, moergate_command
from bench.procfs import Process, cpu_model_of
from bench.stats import percentile
from bench.traffic import Workload

HERE = Path(__file__).resolve().parent
NUM_TOKENS = 16


@dataclass
class Variant:
    """One gateway, and its figures by kind of answer."""

    name: str
    endpoint: str | None
    env: Mapping[str, str]
    port: int = 0
    process: Process = field(default_factory=lambda: Process(0))
    cpu_us: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})
    num_errors: int = 0


class Sink(BaseHTTPRequestHandler):
    """A collector that takes everything and keeps nothing."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Take an export."""
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def main() -> None:
    """Run the benchmark and print its table; the exit code is 1 if any answer was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a measured part (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="times that every variant is measured (%(default)s)")
    parser.add_argument("--concurrency", type=int, default=32, help="callers (%(default)s)")
    options = parser.parse_args()
    sink = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    Thread(target=sink.serve_forever, daemon=True).start()
    collector = f"http://127.0.0.1:{sink.server_port}"
    tenth = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"}
    variants = [
        Variant("off", None, {}),
        Variant("every request", collector, {}),
        Variant("every tenth request", collector, tenth),
        Variant("every request, no collector", f"http://127.0.0.1:{free_port()}", {}),
    ]
    with tempfile.TemporaryDirectory(prefix="moergate-bench-") as name, Children(Path(name)) as children:
        folder = Path(name)
        start(variants, children, folder)
        for number in range(options.rounds):
            for stream in (False, True):
                for variant in variants:
                    spec = PhaseSpec(
                        port=variant.port,
                        workload=Workload("base", stream, "few", NUM_TOKENS, number),
                        seconds=options.seconds,
                        warmup_s=0.5,
                        rate=None,
                        concurrency=options.concurrency,
                    )
                    measure(variant, spec, folder)
    cpu = cpu_model_of(Path("/proc/cpuinfo").read_text("utf-8"))
    print(f"{cpu}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; `{' '.join(['python', *sys.argv])}`\n")
    print(table(variants))
    if any(variant.num_errors for variant in variants):
        sys.exit("Some answers were wrong or missing.")


def start(variants: list[Variant], children: Children, folder: Path) -> None:
    """Start the engine and a gateway for each variant."""
    engine = free_port()
    children.start("engine", [*moergate_command(), "fake-engine", "--port", str(engine)], engine, "/health")
    for index, variant in enumerate(variants):
        variant.port = free_port()
        command = [
            *moergate_command(), "serve", "--port", str(variant.port), "--home", str(folder / f"home-{index}"),
            "--engine-url", f"http://127.0.0.1:{engine}", "--embedder", "hashing",
            *(["--otlp-endpoint", variant.endpoint] if variant.endpoint else []),
        ]  # fmt: skip
        child = children.start(f"gateway-{index}", command, variant.port, "/readyz", timeout_s=180, env=variant.env)
        variant.process = Process(child.pid)


def measure(variant: Variant, spec: PhaseSpec, folder: Path) -> None:
    """One phase of load on one variant."""
    spec_file, result_file = folder / "spec.json", folder / "result.json"
    spec_file.write_bytes(spec.dump())
    before_s = variant.process.cpu_seconds()
    command = [sys.executable, str(HERE / "load_generator.py"), str(spec_file), str(result_file)]
    subprocess.run(command, check=True, timeout=spec.seconds + 60)
    result = PhaseResult.load(result_file.read_bytes())
    spent_s = variant.process.cpu_seconds() - before_s
    variant.num_errors += result.num_errors
    variant.cpu_us[spec.workload.stream].append(spent_s / result.num_good * 1e6)


def table(variants: list[Variant]) -> str:
    """The least over the rounds, and the median."""
    rows = ["| traced | answers | CPU µs a request | median | more than off | errors |", "| --- " * 6 + "|"]
    for stream in (False, True):
        off = min(variants[0].cpu_us[stream])
        for variant in variants:
            least, median = min(variant.cpu_us[stream]), percentile(variant.cpu_us[stream], 50)
            cells = (
                variant.name,
                "stream" if stream else "whole",
                f"{least:.0f}",
                f"{median:.0f}",
                f"{least - off:+.0f}",
            )
            rows.append(f"| {' | '.join(cells)} | {variant.num_errors} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
