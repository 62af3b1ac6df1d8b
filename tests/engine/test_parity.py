"""The float32 engine's tokens and log probabilities against transformers': every kind of recipe, in every company.

Two sets of experts: trained ones (the demo library) and ones with fresh random weights, of unequal ranks, alphas and
target modules. The engine runs with few KV blocks and short prefill chunks, so that long prompts are prefilled in
pieces and a full house is preempted. A second engine computes in bfloat16, where only a bound holds.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("vllm", reason="vLLM is not installed")

from adapters_registry.library import Library  # noqa: E402
from adapters_registry.records import parse_manifest  # noqa: E402
from server.engine.base_model import default_cache_dir, ensure_base_model  # noqa: E402
from server.engine.recipes import Recipe, Single, gate_of, mix_of, parse  # noqa: E402
from server.engine.supervisor import EngineOptions, engine_command  # noqa: E402
from tests.support.observed import ENGINE_METRICS  # noqa: E402
from tests.support.processes import fetch  # noqa: E402
from tests.support.reference import Reference  # noqa: E402
from tests.support.seeds import seed_of  # noqa: E402
from tests.support.waiting import eventually_sync  # noqa: E402

NUM_TOKENS = 64
TOLERANCE = 1e-3
LIBRARY = Path(__file__).parents[2] / "server" / "demo_library" / "library.json"
LOG = re.compile(r"^vllm:num_preemptions_total\{[^}]*\} ([0-9.]+)", re.MULTILINE)
RANDOM = (  # rank, alpha, rsLoRA, target modules
    (4, 8, False, ("q_proj", "v_proj")),
    (8, 8, True, ("q_proj", "k_proj", "v_proj", "o_proj")),
    (16, 16, False, ("gate_proj", "up_proj", "down_proj")),
    (1, 2, False, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
    (3, 6, True, ("v_proj", "down_proj")),
    (16, 32, False, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
    (2, 4, False, ("o_proj",)),
    (8, 16, False, ("q_proj", "up_proj")),
)


@dataclass
class World:
    """A running engine, and the reference that knows the same experts."""

    url: str
    key: str
    reference: Reference
    trained: list[str]
    random: list[str]
    seed: int
    adapters: Path

    def generate(
        self, recipe: str, prompt: Sequence[int], num_tokens: int = NUM_TOKENS
    ) -> tuple[list[int], list[float]]:
        """Greedy tokens with their log probabilities."""
        body = {
            "model": recipe,
            "prompt": list(prompt),
            "max_tokens": num_tokens,
            "temperature": 0,
            "logprobs": 0,
            "ignore_eos": True,
            "return_tokens_as_token_ids": True,
        }
        status, answer = fetch(self.url + "/v1/completions", body, {"authorization": f"Bearer {self.key}"})
        assert status == 200, answer
        found = answer["choices"][0]["logprobs"]
        return [int(token.removeprefix("token_id:")) for token in found["tokens"]], found["token_logprobs"]

    def prompt_logprobs(self, recipe: str, prompt: Sequence[int]) -> list[float]:
        """The log probability of every token of a prompt but the first."""
        body = {"model": recipe, "prompt": list(prompt), "max_tokens": 1, "prompt_logprobs": 0}
        status, answer = fetch(self.url + "/v1/completions", body, {"authorization": f"Bearer {self.key}"})
        assert status == 200, answer
        rows = answer["choices"][0]["prompt_logprobs"][1:]
        return [row[str(token)]["logprob"] for row, token in zip(rows, prompt[1:], strict=True)]

    def check(self, recipe: Recipe, prompt: Sequence[int], tokens: list[int], logprobs: list[float]) -> None:
        """Every token is the reference's greedy choice, with the same log probability."""
        assert len(tokens) == NUM_TOKENS
        ours = torch.tensor(logprobs)
        rows = self.reference.logprobs_like(recipe, [*prompt, *tokens], ours, TOLERANCE)[len(prompt) - 1 : -1]
        theirs = rows[torch.arange(NUM_TOKENS), torch.tensor(tokens)]
        note = f"{recipe}, seed {self.seed}"
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE, msg=lambda m: f"{note}: {m}")
        assert (rows.max(dim=-1).values - theirs).max() <= TOLERANCE, note  # the greedy choice, up to a tie

    def metrics(self) -> str:
        request = urllib.request.Request(self.url + "/metrics", headers={"authorization": f"Bearer {self.key}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return str(answer.read().decode())


def write_random_adapter(folder: Path, model: Any, rng: np.random.Generator, spec: tuple[Any, ...]) -> None:
    """A PEFT folder with random weights, about as strong as a trained adapter."""
    from safetensors.torch import save_file

    rank, alpha, rslora, targets = spec
    tensors = {}
    for name, layer in model.named_modules():
        if name.rpartition(".")[2] in targets:
            d_out, d_in = layer.weight.shape
            scaling = alpha / (rank**0.5 if rslora else rank)
            size = 0.3 * float(layer.weight.detach().norm()) / (d_out * d_in * rank) ** 0.5 / scaling
            a, b = rng.normal(size=(rank, d_in)), rng.normal(size=(d_out, rank)) * size
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.from_numpy(a).float()
            tensors[f"base_model.model.{name}.lora_B.weight"] = torch.from_numpy(b).float()
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "base_model_name_or_path": "SmolLM2-135M-Instruct", "r": rank, "lora_alpha": alpha,
        "use_rslora": rslora, "target_modules": list(targets), "task_type": "CAUSAL_LM", "bias": "none",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


async def register(home: Path, folders: dict[str, Path]) -> dict[str, Path]:
    """Register folders in a library; gives the stored folder of each expert by its id."""
    library = await Library.open(home)
    try:
        records = [
            await library.register_folder(parse_manifest({"name": name, "source": {"path": str(folder)}}), folder)
            for name, folder in folders.items()
        ]
        return {record.expert_id: library.folder_of(record) for record in records}
    finally:
        await library.close()


@dataclass
class Experts:
    """The library that the engines serve, and the reference that knows it."""

    folder: Path
    model: str
    reference: Reference
    trained: list[str]
    random: list[str]
    seed: int
    folders: dict[str, Path]


@pytest.fixture(scope="module")
def experts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Experts:
    folder = tmp_path_factory.mktemp("parity")
    model = ensure_base_model("SmolLM2-135M-Instruct", default_cache_dir(), lambda *_: None)
    reference = Reference(model)
    seed = seed_of(request.node)
    rng = np.random.default_rng(seed)
    for number, spec in enumerate(RANDOM):
        write_random_adapter(folder / f"random{number}", reference.model, rng, spec)
    demo = {m["name"]: (LIBRARY.parent / m["source"]["path"]).absolute() for m in json.loads(LIBRARY.read_text())}
    trained = asyncio.run(register(folder / "home", demo))
    fresh = {f"random{number}": folder / f"random{number}" for number in range(len(RANDOM))}
    random = asyncio.run(register(folder / "home", fresh))
    for expert, path in {**trained, **random}.items():
        reference.add(expert, path)
    return Experts(folder, model, reference, list(trained), list(random), seed, {**trained, **random})


@contextmanager
def engine(experts: Experts, dtype: str) -> Iterator[World]:
    """A vLLM server of its own."""
    options = EngineOptions(
        model=experts.model,
        adapters_dir=experts.folder / "home" / "adapters",
        dtype=dtype,
        max_loras=18,
        max_recipes=32,
        max_lora_rank=16,
        max_model_len=512,
        kv_cache_gib=0.12,
        extra_args=("--max-num-batched-tokens", "192", "--max-num-seqs", "24"),
    )
    command = engine_command(options)
    out = experts.folder / f"engine-{dtype}.log"
    with out.open("wb") as log:
        process = subprocess.Popen(command.argv, stdout=log, stderr=log, env={**os.environ, **command.env})
    try:

        def is_ready() -> bool:
            assert process.poll() is None, out.read_text()[-4000:]
            return fetch(command.url + "/v1/models", headers={"authorization": f"Bearer {command.key}"})[0] == 200

        eventually_sync(is_ready, 600, lambda: out.read_text()[-4000:])
        yield World(
            command.url,
            command.key,
            experts.reference,
            experts.trained,
            experts.random,
            experts.seed,
            options.adapters_dir,
        )
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def world(experts: Experts) -> Iterator[World]:
    with engine(experts, "float32") as running:
        yield running


def prompts(world: World, num: int, length: int) -> list[list[int]]:
    """Random token ids; the experts' own prompts would say no more about the arithmetic."""
    rng = np.random.default_rng(world.seed + length)
    return rng.integers(100, 40_000, size=(num, length)).tolist()


def recipes(world: World) -> list[Recipe]:
    """Each kind, over trained and over random experts."""
    t, r = world.trained, world.random
    gate8 = gate_of("arrow", r, 3)
    return [
        parse("base"),
        Single(t[0]),
        Single(r[1]),
        Single(r[5]),
        mix_of({t[0]: 0.62, t[1]: 0.38}),
        mix_of({r[0]: 0.5, r[5]: 0.5}),
        mix_of({r[0]: 0.4, r[1]: 0.3, r[2]: 0.2, r[4]: 0.1}),
        mix_of({expert: 0.05 + 0.03 * i for i, expert in enumerate(r)}),
        gate_of("arrow", t[:4], 2),
        gate_of("arrow", r, 1, 0.7),
        gate8,
        gate_of("arrow", [r[1], r[3], r[5]], 2, 1.0, "ab"),
        gate_of("arrow", t, 4, 1.0, "ab"),
        gate_of("uniform", [r[1], r[3], r[5]], aggregation="ab"),
        mix_of({r[0]: 0.9, r[3]: -0.3, r[5]: 0.55, t[1]: 0.4}, "ab"),
    ]


def test_every_recipe_alone_then_all_in_one_batch(world: World) -> None:
    asked = list(zip(recipes(world), prompts(world, len(recipes(world)), 24), strict=True))
    alone = [world.generate(str(recipe), prompt) for recipe, prompt in asked]
    for (recipe, prompt), answer in zip(asked, alone, strict=True):
        world.check(recipe, prompt, *answer)
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda pair: world.generate(str(pair[0]), pair[1]), asked))
    for (recipe, prompt), answer in zip(asked, together, strict=True):
        world.check(recipe, prompt, *answer)


def test_prefill_in_chunks_and_a_warm_prefix_cache(world: World) -> None:
    (prompt,) = prompts(world, 1, 320)  # more than one chunk of 192 tokens, and two full blocks
    for recipe in (recipes(world)[7], recipes(world)[10]):
        cold = world.generate(str(recipe), prompt)
        world.check(recipe, prompt, *cold)
        warm = world.generate(str(recipe), prompt)
        world.check(recipe, prompt, *warm)
    base = world.generate("base", prompt)  # the same tokens under another recipe share no block
    world.check(parse("base"), prompt, *base)


def test_a_preempted_request_goes_on_as_before(world: World) -> None:
    chosen = recipes(world)[:10]  # 2 of 21 blocks of 128 tokens each to begin with, and a third before their end
    asked = list(zip(chosen, prompts(world, len(chosen), 200), strict=True))
    before = float(LOG.findall(world.metrics())[0])
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda pair: world.generate(str(pair[0]), pair[1]), asked))
    assert float(LOG.findall(world.metrics())[0]) > before, "nothing was preempted"
    for (recipe, prompt), answer in zip(asked, answers, strict=True):
        world.check(recipe, prompt, *answer)


@pytest.mark.skipif(
    "bf16" not in Path("/proc/cpuinfo").read_text("utf-8"),
    reason="this processor emulates bfloat16: --dtype auto runs float32 here, which the other tests compare",
)
def test_bfloat16_is_as_near_to_float32_as_transformers_in_bfloat16(experts: Experts) -> None:
    """Mean difference of the log probabilities of a text's tokens, in nats; a gate of k=1 jumps in any."""
    half = Reference(experts.model, torch.bfloat16)
    for expert, folder in experts.folders.items():
        half.add(expert, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(experts.model)
    lines = (LIBRARY.parent / "held_out.jsonl").read_text("utf-8").splitlines()
    start = int(np.random.default_rng(experts.seed).integers(len(lines) - 8))
    rows = [json.loads(line) for line in lines[start : start + 8]]
    text = tokenizer.encode("\n".join(row["prompt"] + "\n" + row["answer"] for row in rows))[:200]
    ends = torch.tensor(text[1:])[:, None]
    with engine(experts, "bfloat16") as world:
        for recipe in recipes(world):
            exact = experts.reference.logprobs(recipe, text)[:-1].gather(1, ends)[:, 0]
            theirs = (half.logprobs(recipe, text)[:-1].gather(1, ends)[:, 0] - exact).abs().mean()
            ours = (torch.tensor(world.prompt_logprobs(str(recipe), text)) - exact).abs().mean()
            print(f"{ours:.3f} (transformers {theirs:.3f}) nats: {recipe}")
            assert ours <= 2.5 * theirs + 0.05, f"{recipe}, seed {experts.seed}: {ours} nats, transformers {theirs}"


def ask(world: World, model: str) -> tuple[int, str]:
    body = {"model": model, "prompt": "x", "max_tokens": 2}
    status, answer = fetch(world.url + "/v1/completions", body, {"authorization": f"Bearer {world.key}"})
    return status, json.dumps(answer)


def resident(world: World) -> set[str]:
    return set(re.findall(r'moergate_expert_resident\{expert="([^"]*)"\}', world.metrics()))


def test_the_engine_has_the_metrics_that_the_dashboards_are_tested_with(world: World) -> None:
    """Where no engine runs, a recorded scrape stands for one."""
    assert ask(world, world.trained[0])[0] == 200
    recorded, found = (
        {line.split()[2]: line.split()[3] for line in text.splitlines() if line.startswith("# TYPE")}
        for text in (ENGINE_METRICS.read_text("utf-8"), world.metrics())
    )
    assert recorded and recorded.items() <= found.items()


def test_an_expert_that_is_unloaded_leaves_its_slot(world: World) -> None:
    expert = world.trained[3]
    assert ask(world, expert)[0] == 200
    eventually_sync(lambda: expert in resident(world))  # the worker writes its figures once a second
    body = {"lora_name": expert}
    request = urllib.request.Request(
        world.url + "/v1/unload_lora_adapter",
        json.dumps(body).encode(),
        {"authorization": f"Bearer {world.key}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200
    eventually_sync(lambda: expert not in resident(world))
    assert ask(world, expert)[0] == 200  # and comes back when it is asked for


def test_files_damaged_after_their_first_use_are_refused_and_others_go_on(world: World) -> None:
    expert, other = world.random[6], world.random[0]
    assert ask(world, expert)[0] == ask(world, f"mix({expert}*0.5,{other}*0.5)")[0] == 200
    weights = next(world.adapters.glob(expert.partition("@")[2] + "*")) / "adapter_model.safetensors"
    weights.chmod(0o644)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 255
    weights.write_bytes(content)
    for model in (expert, f"mix({expert}*0.5,{other}*0.5)"):
        status, answer = ask(world, model)
        assert (status, "are damaged" in answer) == (400, True), answer
    assert ask(world, other)[0] == ask(world, "base")[0] == 200
