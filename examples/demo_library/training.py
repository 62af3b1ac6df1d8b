"""How a demo expert is trained: LoRA on one user turn in the chat template, loss on the answer only.

Float32 on the CPU: without bf16 instructions it is faster than bf16 autocast. The prompts' common beginning goes
through the model once a batch, and logits are computed for answer tokens only. Knows nothing of which tasks there are.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from examples.demo_library.shapes import LoraShape
from examples.demo_library.tasks import Sample

BASE_MODEL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"

Encoded = tuple[list[int], int]
"""Token ids of prompt and answer, and the length of the prompt."""


def encode(tokenizer: Any, sample: Sample) -> Encoded:
    """Chat template as it is (with its default system prompt), then the answer and `<|im_end|>`."""
    turn = [{"role": "user", "content": sample.prompt}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    answer = tokenizer(sample.answer + "<|im_end|>", add_special_tokens=False)["input_ids"]
    return prompt + answer, len(prompt)


def batches(encoded: Sequence[Encoded], batch_size: int, num_steps: int, rng: random.Random) -> list[list[Encoded]]:
    """`num_steps` batches of samples of like length, in random order; as many passes over the data as that takes."""
    result: list[list[Encoded]] = []
    while len(result) < num_steps:
        order = sorted(encoded, key=lambda one: (len(one[0]), rng.random()))
        epoch = [order[i : i + batch_size] for i in range(0, len(order) - batch_size + 1, batch_size)]
        rng.shuffle(epoch)
        result += epoch
    return result[:num_steps]


def train_expert(
    samples: Sequence[Sample],
    shape: LoraShape,
    base_folder: str,
    out: Path,
    seed: int,
    progress: Callable[[int, int, float], None],
) -> None:
    """Train one adapter and write it to `out` as a bf16 PEFT folder. `progress(step, num_steps, loss)`."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    config = LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        target_modules=list(shape.modules),
        use_rslora=shape.rslora,
        layers_to_transform=list(range(*shape.layers)) if shape.layers else None,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config)
    model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=shape.learning_rate, weight_decay=0.0)
    warmup = max(1, shape.num_steps // 20)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (shape.num_steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    encoded = [encode(tokenizer, sample) for sample in samples]
    prefix = shared_prefix(encoded)
    rng = random.Random(seed)
    for step, batch in enumerate(batches(encoded, shape.batch_size, shape.num_steps, rng), start=1):
        loss = answer_loss(base, batch, prefix)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        progress(step, shape.num_steps, float(loss.detach()))
    _save(model, out)


def shared_prefix(encoded: Sequence[Encoded]) -> list[int]:
    """The tokens that all prompts begin with: the chat template's system prompt and the head of the user turn."""
    first, last = min(ids for ids, _ in encoded), max(ids for ids, _ in encoded)
    prefix = [a for i, a in enumerate(first) if first[: i + 1] == last[: i + 1]]
    return prefix[: min(num_prompt for _, num_prompt in encoded) - 1]


def answer_loss(base: Any, batch: Sequence[Encoded], prefix: Sequence[int]) -> torch.Tensor:
    """Mean cross-entropy of the answer tokens of a batch whose sequences all begin with `prefix`.

    The prefix goes through the model once, as a batch of one, and its keys and values are repeated for all
    sequences: the same numbers (and gradients) as running whole sequences, for about half the work. The rest is
    padded on the right, where a causal model needs no mask. Hidden states are (B, T, d); only the rows that predict
    an answer token, (n, d), go through the output head.
    """
    start = len(prefix)
    longest = max(len(ids) for ids, _ in batch) - start
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    is_answer = torch.zeros(len(batch), longest, dtype=torch.bool)
    for row, (tokens, num_prompt) in enumerate(batch):
        ids[row, : len(tokens) - start] = torch.tensor(tokens[start:])
        is_answer[row, num_prompt - start : len(tokens) - start] = True
    cache = DynamicCache()
    base.model(input_ids=torch.tensor([list(prefix)]), past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(batch))
    hidden = base.model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
    logits = base.lm_head(hidden[:, :-1][is_answer[:, 1:]])
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:][is_answer[:, 1:]])


def _save(model: Any, out: Path) -> None:
    """Write the adapter as bf16 with a config that names the hub's base and is the same on every machine."""
    model.to(torch.bfloat16)
    model.save_pretrained(out, save_embedding_layers=False)
    (out / "README.md").unlink(missing_ok=True)
    file = out / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = BASE_MODEL_NAME
    config["target_modules"] = sorted(config["target_modules"])
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (out / "adapter_model.safetensors").chmod(0o644)
