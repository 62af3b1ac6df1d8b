"""The plain formula of every recipe inside transformers' own model: what the engine's answers are compared with.

    y += Σ_e g_e(x) · s_e · B_e A_e x        in every adapted linear layer

Experts are read from PEFT folders. One forward pass over a prompt and its continuation gives the log probabilities at
every step, as an engine with the same numbers would have had them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from adapters_registry.prototypes import top_right_singular_vector
from server.engine.recipes import Base, Gate, Mix, Recipe, Single


@dataclass(frozen=True)
class Factors:
    """One expert in one layer: A (r, d_in), B (d_out, r), scaling, and Arrow's prototype (d_in,)."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    vector: torch.Tensor


class Reference:
    """The base model with experts, in float32.

    Args:
        model: Folder of the base model.
    """

    def __init__(self, model: str) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.experts: dict[str, dict[str, Factors]] = {}

    def add(self, expert_id: str, folder: Path) -> None:
        """Read an expert from a PEFT folder."""
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
        layers: dict[str, Factors] = {}
        for name, a in tensors.items():
            module, found, _ = name.removeprefix("base_model.model.").partition(".lora_A.")
            if found:
                a, b = a.float(), tensors[name.replace("lora_A", "lora_B")].float()
                root = len(a) ** 0.5 if config.get("use_rslora") else len(a)
                vector = torch.from_numpy(top_right_singular_vector(a.numpy(), b.numpy())).float()
                layers[module] = Factors(a, b, config["lora_alpha"] / root, vector)
        self.experts[expert_id] = layers

    @torch.inference_mode()
    def logprobs(self, recipe: Recipe, tokens: Sequence[int]) -> torch.Tensor:
        """Log probabilities of the next token after every token, shape (num_tokens, vocabulary)."""
        handles = [
            layer.register_forward_hook(self._hook(recipe, name))
            for name, layer in self.model.named_modules()
            if any(name in layers for layers in self.experts.values())
        ]
        try:
            logits = self.model(torch.tensor([list(tokens)])).logits[0].float()
        finally:
            for handle in handles:
                handle.remove()
        return torch.log_softmax(logits, dim=-1)

    def _hook(self, recipe: Recipe, name: str) -> Callable[[Any, Any, torch.Tensor], torch.Tensor]:
        def add(_layer: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
            return output + self._delta(recipe, name, inputs[0])

        return add

    def _delta(self, recipe: Recipe, name: str, x: torch.Tensor) -> torch.Tensor | float:
        match recipe:
            case Base():
                return 0.0
            case Single(expert):
                return self._weighted({expert: 1.0}, name, x)
            case Mix(weights):
                return self._weighted(dict(weights), name, x)
            case Gate():
                return self._gated(recipe, name, x)
        raise ValueError(f"no formula for {recipe}")

    def _weighted(self, weights: dict[str, float], name: str, x: torch.Tensor) -> torch.Tensor | float:
        total: torch.Tensor | float = 0.0
        for expert, weight in weights.items():
            if (f := self.experts[expert].get(name)) is not None:
                total = total + weight * f.scaling * (x @ f.a.T @ f.b.T)
        return total

    def _gated(self, gate: Gate, name: str, x: torch.Tensor) -> torch.Tensor | float:
        chosen = [f for expert in gate.experts if (f := self.experts[expert].get(name)) is not None]
        if not chosen:
            return 0.0
        scores = (x @ torch.stack([f.vector for f in chosen]).T).abs()
        kept = scores.topk(min(gate.k, len(chosen)), dim=-1)
        hidden = torch.full_like(scores, float("-inf")).scatter(-1, kept.indices, kept.values)
        gains = torch.softmax(hidden / gate.temperature, dim=-1)
        if gate.aggregation == "output":
            return sum(
                (gains[..., i : i + 1] * f.scaling * (x @ f.a.T @ f.b.T) for i, f in enumerate(chosen)), torch.zeros(())
            )
        rank = max(len(f.a) for f in chosen)
        a = torch.stack([torch.nn.functional.pad(f.a, (0, 0, 0, rank - len(f.a))) for f in chosen])
        b = torch.stack([torch.nn.functional.pad(f.b * f.scaling, (0, rank - f.b.shape[1])) for f in chosen])
        inner = torch.einsum("...e,...er->...r", gains, torch.einsum("erd,...d->...er", a, x))  # mean A, times x
        return torch.einsum("...e,...eo->...o", gains, torch.einsum("eor,...r->...eo", b, inner))  # mean B, times that
