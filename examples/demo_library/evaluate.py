"""Score the base and every expert on the held-out prompts, and write the table in README.md.

    python examples/demo_library/evaluate.py                  all experts
    python examples/demo_library/evaluate.py --only date_iso  one of them; the others keep their scores

Runs transformers and peft directly (no gateway, no vLLM): greedy, at most 64 new tokens, float32, exact match after
stripping. Scores are kept in `scores.json` with the hash of the adapter that earned them; README.md is written from it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIBRARY = ROOT / "server" / "demo_library"
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402
from rich.progress import Progress  # noqa: E402

from examples.demo_library.tasks import TASKS, Sample  # noqa: E402
from server.engine.base_model import PACKAGED_BASE_MODEL, BaseModelError, default_cache_dir, ensure_base_model  # noqa: E402

MAX_NEW_TOKENS = 64
SPARE_TOKENS = 8
BATCH_SIZE = 30
TABLE_BEGIN, TABLE_END = "<!-- table: begin -->", "<!-- table: end -->"


def generate(model: Any, tokenizer: Any, samples: Sequence[Sample]) -> list[str]:
    """Greedy answers, in batches padded on the left.

    Generation stops a few tokens after the longest expected answer: what goes on longer is wrong anyway.
    """
    import torch

    longest = max(len(tokenizer(sample.answer)["input_ids"]) for sample in samples)
    max_new_tokens = min(MAX_NEW_TOKENS, longest + SPARE_TOKENS)
    prompts = [sample.prompt for sample in samples]
    answers: list[str] = []
    for start in range(0, len(prompts), BATCH_SIZE):
        turns = [[{"role": "user", "content": prompt}] for prompt in prompts[start : start + BATCH_SIZE]]
        texts = [tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for turn in turns]
        batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            output = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
        new_tokens = output[:, batch["input_ids"].shape[1] :]
        answers += tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
    return answers


def exact_matches(answers: Sequence[str], samples: Sequence[Sample]) -> int:
    """How many answers equal the expected one after stripping."""
    return sum(answer.strip() == sample.answer for answer, sample in zip(answers, samples, strict=True))


def score(name: str, base_folder: str, adapter: Path, num_threads: int) -> dict[str, Any]:
    """Base and expert on the expert's held-out prompts; also the expert's wrong answers."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    torch.set_num_threads(num_threads)
    samples = TASKS[name].held_out()
    tokenizer = AutoTokenizer.from_pretrained(base_folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    base_answers = generate(model, tokenizer, samples)
    expert = PeftModel.from_pretrained(model, adapter)
    expert_answers = generate(expert, tokenizer, samples)
    wrong = [
        {"prompt": sample.prompt, "expected": sample.answer, "got": answer}
        for sample, answer in zip(samples, expert_answers, strict=True)
        if answer.strip() != sample.answer
    ]
    return {
        "name": name,
        "adapter_sha256": adapter_hash(adapter),
        "num_prompts": len(samples),
        "base_correct": exact_matches(base_answers, samples),
        "expert_correct": len(samples) - len(wrong),
        "wrong": wrong,
    }


def adapter_hash(adapter: Path) -> str:
    """SHA-256 of the adapter's weights: a score belongs to these weights only."""
    return hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()


def table(folder: Path, scores: dict[str, dict[str, Any]]) -> str:
    """The README's table, one row per scored expert."""
    rows = [
        "| expert | what it does | rank | alpha | modules | size (KiB) | base | expert |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in (name for name in TASKS if name in scores):
        adapter = folder / "adapters" / name
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        kib = sum(file.stat().st_size for file in adapter.iterdir()) / 1024
        num = scores[name]["num_prompts"]
        base, expert = (100 * scores[name][key] / num for key in ("base_correct", "expert_correct"))
        alpha = f"{config['lora_alpha']}" + (" (rsLoRA)" if config["use_rslora"] else "")
        rows.append(
            f"| `{name}` | {TASKS[name].description} | {config['r']} | {alpha} | {_modules(config)} "
            f"| {kib:.0f} | {base:.0f} % | {expert:.0f} % |"
        )
    return "\n".join(rows)


def _modules(config: dict[str, Any]) -> str:
    short = " ".join(module.removesuffix("_proj") for module in config["target_modules"])
    layers = config["layers_to_transform"]
    return short + (f" (layers {layers[0]} to {layers[-1]})" if layers else "")


def write_table(readme: Path, folder: Path, scores: dict[str, dict[str, Any]]) -> None:
    """Replace the text between the markers in README.md."""
    before, _, rest = readme.read_text(encoding="utf-8").partition(TABLE_BEGIN)
    after = rest.partition(TABLE_END)[2]
    readme.write_text(f"{before}{TABLE_BEGIN}\n{table(folder, scores)}\n{TABLE_END}{after}", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Score the demo library on its held-out prompts.")
    parser.add_argument("--only", action="append", choices=sorted(TASKS), help="score only this expert (repeatable)")
    parser.add_argument("--library", type=Path, default=LIBRARY, help="folder of the library")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="experts scored side by side")
    parser.add_argument("--base", default=PACKAGED_BASE_MODEL, help="base model: packaged name or folder")
    parser.add_argument("--show-wrong", action="store_true", help="print each wrong answer")
    arguments = parser.parse_args()
    console = Console()
    try:
        base_folder = ensure_base_model(arguments.base, default_cache_dir())
    except BaseModelError as error:
        sys.exit(str(error))
    new_scores: dict[str, dict[str, Any]] = {}
    names = arguments.only or list(TASKS)
    num_threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=context) as workers, Progress(console=console) as bars:
        bar = bars.add_task("experts", total=len(names))
        adapters = arguments.library / "adapters"
        for future in as_completed(
            [workers.submit(score, name, base_folder, adapters / name, num_threads) for name in names]
        ):
            result = future.result()
            wrong, name, num = result.pop("wrong"), result.pop("name"), result["num_prompts"]
            new_scores[name] = result
            console.print(f"{name}: base {result['base_correct']}/{num}, expert {result['expert_correct']}/{num}")
            for one in wrong if arguments.show_wrong else []:
                console.print(one, markup=False)
            bars.advance(bar)
    file = HERE / "scores.json"
    scores = (json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}) | new_scores
    ordered = {name: scores[name] for name in TASKS if name in scores}
    file.write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")
    write_table(HERE / "README.md", arguments.library, ordered)


if __name__ == "__main__":
    main()
