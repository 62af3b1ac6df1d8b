"""Composed adapters: several stored adapters merged into one PEFT folder, for servers that run one LoRA per request.

They also serve for merge formulas other than the exact weighted sum, which the engine's plugin computes itself. Blocks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from adapters_registry.disk.layout import CONFIG_FILE, WEIGHTS_FILE
from adapters_registry.errors import CannotMerge
from adapters_registry.merging.arrow_prototypes import read_factors
from adapters_registry.merging.formulas import Factors, MergeOptions, merge
from adapters_registry.merging.method_names import Method


def compose(
    sources: Sequence[tuple[Path, float]], target: Path, method: Method, options: MergeOptions, max_rank: int
) -> None:
    """Merge stored adapters into a new PEFT folder, in float32.

    Args:
        sources: Stored folders with normalised configs, each with its weight.
        target: The folder to write; it must not exist.
        method: A formula of `adapters_registry.merging.formulas`.
        options: Options of that formula.
        max_rank: Largest rank that the engine accepts.

    Raises:
        CannotMerge: The sources cannot be merged this way, or the result's rank is too large.
    """
    modules: dict[str, list[Factors]] = {}
    base_models = set()
    for folder, weight in sources:
        config = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
        base_models.add(config.get("base_model_name_or_path"))
        for module, (a, b) in read_factors(folder / WEIGHTS_FILE).items():
            modules.setdefault(module, []).append(
                Factors(a.astype(np.float64), b.astype(np.float64), _scaling(config, module, len(a)), weight)
            )
    merged = merge(modules, method, options)
    rank = max(len(a) for a, _ in merged.values())
    if rank > max_rank:
        raise CannotMerge(
            f"the result has rank {rank}, more than {max_rank}; use svd with a rank of at most {max_rank}"
        )
    target.mkdir(parents=True)
    tensors = {}
    for module, (merged_a, merged_b) in merged.items():
        prefix = f"base_model.model.{module}"
        tensors[f"{prefix}.lora_A.weight"] = np.ascontiguousarray(merged_a, np.float32)
        tensors[f"{prefix}.lora_B.weight"] = np.ascontiguousarray(merged_b, np.float32)
    save_file(tensors, target / WEIGHTS_FILE)
    (target / CONFIG_FILE).write_text(json.dumps(_config(merged, rank, base_models)), "utf-8")


def _scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    alpha = float(config["alpha_pattern"].get(re.escape(module), config["lora_alpha"]))
    return alpha / (rank**0.5 if config["use_rslora"] else rank)


def _config(merged: Mapping[str, tuple[Any, Any]], rank: int, base_models: set[Any]) -> dict[str, Any]:
    """Return a config with scaling 1 in every module: alpha equals the rank."""
    other = {re.escape(module): len(a) for module, (a, _) in merged.items() if len(a) != rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": next(iter(base_models)) if len(base_models) == 1 else None,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": other,
        "alpha_pattern": other,
        "use_rslora": False,
        "target_modules": sorted(merged),
        "bias": "none",
    }
