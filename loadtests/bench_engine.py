"""What LoRA costs inside the engine: ``python loadtests/bench_engine.py`` compares vLLM without it, vLLM's, and ours.

Three real vLLM servers with the same start-up settings stand side by side and are asked in turn, one at a time, in
several rounds of one run, so that a machine whose speed swings hurts all alike. Every figure is throughput relative
to the server without LoRA in the same round. Experts have random weights: what they say does not matter here. Needs
Linux, the extra ``cpu`` and the base model in the cache, which ``moergate serve`` puts there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench.machine import machine_facts, shown_command
from bench.processes import Child, Children, NotReady, free_port, moergate_command
from bench.stats import percentile
from safetensors.numpy import save_file

ENTRY = "vllm.entrypoints.launchers.api_server.entry"
KEY = "bench"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NUM_REQUESTS = 16


@dataclass(frozen=True, slots=True)
class Load:
    """Sixteen requests at once."""

    name: str
    num_in: int
    num_out: int


LOADS = (Load("200 in, 32 out", 200, 32), Load("20 in, 64 out", 20, 64))


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked of one server: a model for each of the requests."""

    name: str
    server: str
    models: tuple[str, ...]


class Server:
    """One vLLM."""

    def __init__(self, child: Child) -> None:
        self._url = f"http://127.0.0.1:{child.port}/v1/completions"
        self._rng = np.random.default_rng(child.port)
        self._pool = ThreadPoolExecutor(NUM_REQUESTS)

    def run(self, models: Sequence[str], load: Load) -> float:
        """Tokens generated a second, of one load; prompts are never seen before, so that no cache helps."""
        bodies = [
            {
                "model": models[number % len(models)],
                "prompt": self._rng.integers(100, 40_000, load.num_in).tolist(),
                "max_tokens": load.num_out,
                "temperature": 0,
                "ignore_eos": True,
            }
            for number in range(NUM_REQUESTS)
        ]
        started = time.perf_counter()
        list(self._pool.map(self._ask, bodies))
        return NUM_REQUESTS * load.num_out / (time.perf_counter() - started)

    def _ask(self, body: dict[str, object]) -> None:
        headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)  # noqa: S310 - loopback
        with urllib.request.urlopen(request, timeout=600) as answer:  # noqa: S310 - loopback
            used = json.load(answer)["usage"]["completion_tokens"]
        if used != body["max_tokens"]:
            raise SystemExit(f"{used} tokens came instead of {body['max_tokens']}")


def base_model(given: str | None) -> Path:
    """The folder of the base model."""
    if given:
        return Path(given)
    shown = subprocess.run(
        [*moergate_command(), "config", "show", "--json"], capture_output=True, text=True, check=True
    )
    settings = json.loads(shown.stdout)
    cache = settings.get("cache_dir") or Path.home() / ".cache" / "moergate"
    folder = Path(cache) / "models" / str(settings["base_model"])
    if not (folder / "config.json").is_file():
        raise SystemExit(f"No base model at {folder}: run moergate serve once, or give --model.")
    return folder


def write_adapter(folder: Path, shapes: dict[str, tuple[int, int]], rank: int, seed: int) -> None:
    """A PEFT folder with random weights for every linear layer."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, (d_out, d_in) in shapes.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = rng.normal(size=(rank, d_in)).astype(np.float32)
        tensors[f"base_model.model.{name}.lora_B.weight"] = rng.normal(size=(d_out, rank), scale=1e-3).astype(
            np.float32
        )
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "base_model_name_or_path": "base", "r": rank, "lora_alpha": 2 * rank,
        "target_modules": list(TARGETS), "task_type": "CAUSAL_LM", "bias": "none",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


def shapes_of(model: Path) -> dict[str, tuple[int, int]]:
    """Linear layers of the base with (d_out, d_in)."""
    import safetensors

    shapes = {}
    for file in model.glob("*.safetensors"):
        with safetensors.safe_open(file, "numpy") as tensors:
            for name in tensors.keys():
                module = name.removesuffix(".weight")
                if module.rpartition(".")[2] in TARGETS:
                    d_out, d_in = tensors.get_slice(name).get_shape()
                    shapes[module] = (d_out, d_in)
    return shapes


@contextmanager
def registered(folder: Path, model: Path, num_experts: int, rank: int) -> Iterator[tuple[Path, list[str]]]:
    """A library of random experts, registered by a gateway in front of a double; its store and the experts' ids."""
    manifests = []
    for number in range(num_experts):
        write_adapter(folder / f"e{number}", shapes_of(model), rank, number)
        manifests.append({"name": f"e{number}", "source": {"path": str(folder / f"e{number}")}})
    (folder / "library.json").write_text(json.dumps(manifests))
    home, port, engine_port = folder / "home", free_port(), free_port()
    with Children(folder) as children:
        children.start(
            "double", [*moergate_command(), "fake-engine", "--port", str(engine_port)], engine_port, "/health"
        )
        command = [
            *moergate_command(), "serve", "--port", str(port), "--home", str(home), "--embedder", "hashing",
            "--engine-url", f"http://127.0.0.1:{engine_port}", "--library", str(folder / "library.json"),
        ]  # fmt: skip
        children.start("registrar", command, port, "/readyz", timeout_s=180)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/admin/adapters", timeout=60) as answer:
            ids = sorted(
                (entry["id"] for entry in json.load(answer)["data"]), key=lambda found: int(found[1:].partition("@")[0])
            )
    if len(ids) != num_experts:
        raise SystemExit(f"{len(ids)} of {num_experts} experts were registered")
    yield home / "adapters", ids


def engine_environment() -> dict[str, str]:
    """The start-up settings that moergate serve would choose."""
    env = {
        "VLLM_API_KEY": KEY, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
        "KMP_BLOCKTIME": "5", "KMP_TPAUSE": "0",
    }  # fmt: skip
    tcmalloc = sorted(Path("/usr/lib", f"{platform.machine()}-linux-gnu").glob("libtcmalloc_minimal.so.*"))[:1]
    preload = [*tcmalloc, Path(sys.prefix) / "lib" / "libiomp5.so"]
    env["LD_PRELOAD"] = ":".join(str(path) for path in preload if path.exists())
    return env


def plugin_environment(store: Path, num_slots: int) -> dict[str, str]:
    """What a server needs on top for our plugin."""
    return {
        "MOERGATE_ADAPTERS_DIR": str(store),
        "MOERGATE_EXPERT_SLOTS": str(num_slots),
        "MOERGATE_FORK_ENGINE": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    }


def vllm_command(model: Path, dtype: str, port: int) -> list[str]:
    """A vLLM server without LoRA."""
    return [
        sys.executable, "-m", ENTRY, "--model", str(model), "--host", "127.0.0.1", "--served-model-name", "base",
        "--dtype", dtype, "--max-model-len", "1024", "--enforce-eager", "--gpu-memory-utilization", "0.3",
        "--kv-cache-memory-bytes", str(512 << 20), "--disable-uvicorn-access-log", "--port", str(port),
    ]  # fmt: skip


def start_servers(
    options: argparse.Namespace, model: Path, store: Path, experts: Sequence[str], children: Children
) -> dict[str, Server]:
    """vLLM without LoRA, with its own, with ours, and without LoRA but with what our plugin does for the base."""
    lora = ["--enable-lora", "--max-lora-rank", str(options.rank)]
    paths = [f"{expert}={store / name}" for expert in experts[:8] for name in folder_of(store, expert)]
    plugin = plugin_environment(store, len(experts))
    variants = {
        "off": ([], {}),
        "stock": ([*lora, "--max-loras", "8", "--lora-modules", *paths], {}),
        "ours": ([*lora, "--max-loras", "32"], plugin),
        "kernels": ([], plugin),
    }
    left_out = {"stock", "kernels"} if options.grow else {"stock"} if options.no_stock else set()
    servers = {}
    for name, (arguments, extra) in variants.items():
        if name in left_out:
            continue
        say(f"starting vLLM, {name}")
        port = free_port()
        command = [*vllm_command(model, options.dtype, port), *arguments]
        env = {**engine_environment(), **extra}
        servers[name] = Server(children.start(name, command, port, "/health", timeout_s=300, env=env))
    return servers


def folder_of(store: Path, expert: str) -> list[str]:
    """The folder's name of an expert in the store."""
    return [found.name for found in store.glob(expert.partition("@")[2] + "*")]


def cases_of(experts: Sequence[str], options: argparse.Namespace) -> list[Case]:
    """What is compared."""
    eight = tuple(experts[:8])
    mix = f"mix({','.join(f'{expert}*0.25' for expert in sorted(experts[:4]))})"
    gate = f"gate(arrow,k=4,t=1;{','.join(sorted(eight))})"
    if options.grow:
        in_batch = [
            Case(f"ours, {num} experts in the batch", "ours", tuple(experts[:num]))
            for num in (1, 2, 4, 8, 16)
            if num <= len(experts)
        ]
        ks = [Case(f"ours, Arrow over 8, k={k}", "ours", (gate.replace("k=4", f"k={k}"),)) for k in (1, 2, 4, 8)]
        return [*in_batch, *ks]
    cases = [
        Case("LoRA off, with our plugin's kernels", "kernels", ("base",)),
        Case("ours, no adapter used", "ours", ("base",)),
        Case("ours, one expert", "ours", (experts[0],)),
        Case("ours, 8 experts", "ours", eight),
        Case("ours, mix of 4", "ours", (mix,)),
        Case("ours, Arrow over 8, k=4", "ours", (gate,)),
    ]
    if not options.no_stock:
        cases[:0] = [Case("stock, one expert", "stock", (experts[0],)), Case("stock, 8 experts", "stock", eight)]
    return cases


def measure(
    options: argparse.Namespace, servers: dict[str, Server], cases: Sequence[Case], experts: Sequence[str]
) -> dict[tuple[str, str], list[float]]:
    """Throughput of each case and load, one figure a round, relative to LoRA off just before and after."""
    ratios: dict[tuple[str, str], list[float]] = {}
    warm = Load("warm", 8, 4)  # everything is loaded before the clock runs, experts that no case uses as well
    for start in range(0, len(experts), NUM_REQUESTS):
        servers["ours"].run(experts[start : start + NUM_REQUESTS], warm)
    for case in cases:
        servers[case.server].run(case.models, warm)
    for number in range(options.rounds):
        for load in LOADS:
            after = servers["off"].run(("base",), load)
            for case in cases:
                if case.server == "stock" and number >= options.stock_rounds:
                    continue
                before = after
                found = servers[case.server].run(case.models, load)
                after = servers["off"].run(("base",), load)
                ratio = 2 * found / (before + after)
                ratios.setdefault((case.name, load.name), []).append(ratio)
                say(f"round {number + 1}, {load.name}: {case.name}: {found:.0f} tokens/s, {ratio:.2f} of LoRA off")
    return ratios


def describe_machine(script: str) -> list[str]:
    """Date, machine, commit and command, as lines of Markdown."""
    facts = machine_facts() | {"command": f"`{shown_command(script, sys.argv[1:], hidden=())}`"}
    return [f"- {name}: {value}" for name, value in facts.items()]


def report(options: argparse.Namespace, cases: Sequence[Case], ratios: dict[tuple[str, str], list[float]]) -> str:
    """The table, as Markdown."""
    lines = [
        *describe_machine("bench_engine.py"),
        f"- {options.dtype}, {options.experts} resident experts of rank {options.rank} on all linear layers, "
        f"{NUM_REQUESTS} requests at once",
        "",
        "| tokens a second relative to LoRA off, median (least to largest) | "
        + " | ".join(load.name for load in LOADS)
        + " |",
        "|---|" + "---|" * len(LOADS),
    ]
    for case in cases:
        cells = []
        for load in LOADS:
            found = sorted(ratios[case.name, load.name])
            cells.append(f"{percentile(found, 50):.2f} ({found[0]:.2f} to {found[-1]:.2f})")
        lines.append(f"| {case.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="times that every case is measured (%(default)s)")
    parser.add_argument(
        "--stock-rounds", type=int, default=1, help="of them with stock LoRA, which is slow (%(default)s)"
    )
    parser.add_argument("--no-stock", action="store_true", help="leave stock LoRA out")
    parser.add_argument("--grow", action="store_true", help="instead how it grows with experts in the batch and with k")
    parser.add_argument("--rank", type=int, default=8, help="of every expert (%(default)s)")
    parser.add_argument("--experts", type=int, default=8, help="resident experts (%(default)s)")
    parser.add_argument("--dtype", default="bfloat16", help="of the engines (%(default)s)")
    parser.add_argument("--model", help="folder of the base model; default: the one in the cache")
    parser.add_argument("--out", type=Path, help="file for the report; it is printed too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    model = base_model(options.model)
    with tempfile.TemporaryDirectory(prefix="moergate-bench-") as name:
        folder = Path(name)
        num_experts = options.experts = max(options.experts, 16 if options.grow else 8)
        say(f"registering {num_experts} experts")
        with registered(folder, model, num_experts, options.rank) as (store, experts), Children(folder) as children:
            cases = cases_of(experts, options)
            try:
                servers = start_servers(options, model, store, experts, children)
            except NotReady as error:
                sys.exit(str(error))
            text = report(options, cases, measure(options, servers, cases, experts))
    print(text)
    if options.out:
        options.out.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
