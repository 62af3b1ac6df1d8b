"""More experts than slots: ``python loadtests/bench_residency.py`` measures what it costs when they take turns.

One vLLM with the plugin has a slot for every expert, another for half of them. Both get the same open-loop load, at
the same times, one after the other in several rounds: requests for experts chosen by Zipf's law, arriving at random.
The figure is the time to the first token. Experts have random weights. Needs what ``bench_engine.py`` needs.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from bench.processes import Child, Children, NotReady, free_port
from bench.stats import percentile
from bench_engine import (
    KEY,
    base_model,
    describe_machine,
    engine_environment,
    plugin_environment,
    registered,
    say,
    vllm_command,
)


class Asker:
    """Sends streaming requests and notes when the first token came."""

    def __init__(self, child: Child) -> None:
        self._url = f"http://127.0.0.1:{child.port}"

    def ttft_s(self, model: str, prompt: list[int], num_out: int) -> float:
        """Seconds from sending to the first token; reads the answer to its end."""
        body = {"model": model, "prompt": prompt, "max_tokens": num_out, "stream": True, "ignore_eos": True}
        headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
        request = urllib.request.Request(self._url + "/v1/completions", json.dumps(body).encode(), headers)  # noqa: S310
        started = time.perf_counter()
        with urllib.request.urlopen(request, timeout=600) as answer:  # noqa: S310 - loopback
            first = 0.0
            for line in answer:
                if line.startswith(b"data: {") and not first:
                    first = time.perf_counter() - started
        return first

    def figures(self) -> dict[str, float]:
        """The plugin's counters."""
        request = urllib.request.Request(self._url + "/metrics", headers={"authorization": f"Bearer {KEY}"})  # noqa: S310
        found = {}
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - loopback
            for line in answer.read().decode().splitlines():
                if line.startswith("moergate_expert_") and "resident" not in line:
                    name, _, value = line.rpartition(" ")
                    found[name] = float(value)
        return found


def run(asker: Asker, experts: Sequence[str], options: argparse.Namespace, seed: int) -> list[float]:
    """One round of load; times to the first token of all requests."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, len(experts) + 1) ** options.zipf
    chosen = rng.choice(len(experts), size=options.requests, p=share / share.sum())
    times = np.cumsum(rng.exponential(1 / options.rate, options.requests))
    prompts = rng.integers(100, 40_000, (options.requests, options.tokens_in)).tolist()
    started = time.perf_counter()
    with ThreadPoolExecutor(options.requests) as pool:
        waiting = []
        for number in range(options.requests):
            threading.Event().wait(max(0.0, started + times[number] - time.perf_counter()))
            waiting.append(pool.submit(asker.ttft_s, experts[chosen[number]], prompts[number], options.tokens_out))
        return [future.result() for future in waiting]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--experts", type=int, default=16, help="active experts (%(default)s)")
    parser.add_argument("--slots", type=int, default=8, help="slots of the second engine (%(default)s)")
    parser.add_argument("--rate", type=float, default=1.5, help="requests a second (%(default)s)")
    parser.add_argument("--requests", type=int, default=60, help="in a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--zipf", type=float, default=1.0, help="exponent (%(default)s)")
    parser.add_argument("--tokens-in", type=int, default=50, help="length of a prompt (%(default)s)")
    parser.add_argument("--tokens-out", type=int, default=24, help="length of an answer (%(default)s)")
    parser.add_argument("--rank", type=int, default=8, help="of every expert (%(default)s)")
    parser.add_argument("--dtype", default="float32", help="of the engines (%(default)s)")
    parser.add_argument("--model", help="folder of the base model; default: the one in the cache")
    parser.add_argument("--out", type=Path, help="file for the report; it is printed too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    model = base_model(options.model)
    found: dict[str, list[float]] = {"all resident": [], "half resident": []}
    with tempfile.TemporaryDirectory(prefix="moergate-bench-") as name:
        folder = Path(name)
        with registered(folder, model, options.experts, options.rank) as (store, experts), Children(folder) as children:
            askers = {}
            for title, slots in (("all resident", options.experts), ("half resident", options.slots)):
                say(f"starting vLLM, {title}: {slots} slots")
                port = free_port()
                env = {**engine_environment(), **plugin_environment(store, slots)}
                lora = ["--enable-lora", "--max-lora-rank", str(options.rank), "--max-loras", "32"]
                command = [*vllm_command(model, options.dtype, port), *lora]
                try:
                    child = children.start(title.replace(" ", "-"), command, port, "/health", 300, env=env)
                except NotReady as error:
                    sys.exit(str(error))
                askers[title] = Asker(child)
                for expert in experts:
                    askers[title].ttft_s(expert, [1, 2, 3], 1)
            before = askers["half resident"].figures()
            for number in range(options.rounds):
                for title, asker in askers.items():
                    times = run(asker, experts, options, number)
                    found[title] += times
                    say(f"round {number + 1}, {title}: median TTFT {percentile(sorted(times), 50) * 1000:.0f} ms")
            time.sleep(2)  # the counters are written once a second
            after = askers["half resident"].figures()
    lines = [
        *describe_machine("bench_residency.py"),
        f"- {options.experts} experts of rank {options.rank}, Zipf {options.zipf:g}, {options.rate:g} requests/s, "
        f"{options.tokens_in} tokens in, {options.tokens_out} out, {options.dtype}",
        "",
        "| slots | TTFT p50, ms | p90 | p99 |",
        "|---|---|---|---|",
    ]
    for (title, times), slots in zip(found.items(), (options.experts, options.slots), strict=True):
        figures = " | ".join(f"{percentile(sorted(times), q) * 1000:.0f}" for q in (50, 90, 99))
        lines.append(f"| {slots}, {title} | {figures} |")
    medians = [percentile(sorted(times), 50) for times in found.values()]
    lines += ["", f"Median with half of them resident: {medians[1] / medians[0]:.2f} times that with all resident.", ""]
    for name, value in sorted(after.items()):
        if "_created" not in name:
            lines.append(f"- `{name}`: {value - before.get(name, 0):g}")
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
