"""Builders of small, real PEFT folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HIDDEN, KV, INNER, LAYERS = 16, 8, 32, 2
MODULES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}


def make_adapter(
    folder: Path, *, seed: int = 0, rank: int = 4, modules: tuple[str, ...] = ("q_proj", "v_proj")
) -> Path:
    """Write a valid adapter for a base of `LAYERS` layers and the shapes above; random, not zero."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for layer in range(LAYERS):
        for path, (d_out, d_in) in MODULES.items():
            if path.rpartition(".")[2] in modules:
                prefix = f"base_model.model.model.layers.{layer}.{path}"
                tensors[f"{prefix}.lora_A.weight"] = rng.normal(size=(rank, d_in)).astype(np.float32)
                tensors[f"{prefix}.lora_B.weight"] = rng.normal(size=(d_out, rank)).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "tiny-base",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(modules),
        "task_type": "CAUSAL_LM",
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def manifest(name: str, folder: Path, *examples: str, tenant: str | None = None) -> dict[str, object]:
    """A manifest as the admin API takes it."""
    return {
        "name": name,
        "source": {"path": str(folder)},
        "card": {"description": f"knows {name}", "tags": [name], "tenant": tenant},
        "examples": list(examples),
    }
