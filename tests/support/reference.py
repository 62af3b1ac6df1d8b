"""The plain formula of every recipe inside transformers' own model: what the engine's answers are compared with.

    y += Σ_e g_e(x) · s_e · B_e A_e x        in every adapted linear layer

Experts are read from PEFT folders. One forward pass over a prompt and its continuation gives the log probabilities at
every step, as an engine with the same numbers would have had them.

It computes in float64 unless told otherwise, so that an engine is charged with its own rounding and not with that of
the reference too.

A gate that keeps the k best is discontinuous: where the k-th and the next score differ by less than float32's noise,
either choice is right, and the two give quite different answers. Such ties are found and can be decided the other way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from adapters_registry.merging.arrow_prototypes import top_right_singular_vector
from server.engine.recipes import Base, Gate, Mix, Recipe, Single

# Scores closer than this, in units of the input's root mean square, are within float32's noise: over 350 tokens in
# all 210 modules, transformers' own scores in float32 were up to 6e-5 from those in float64, and a gap is of two.
TIE = 1.5e-4
MAX_SWAPS = 4


@dataclass(frozen=True)
class Factors:
    """One expert in one layer: A (r, d_in), B (d_out, r), scaling, and Arrow's prototype (d_in,)."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    vector: torch.Tensor


@dataclass(frozen=True)
class Tie:
    """A choice that a gate may make either way: at a module, for a token."""

    module: str
    position: int


class Reference:
    """The base model with experts.

    Args:
        model: Folder of the base model.
        dtype: What it computes in.
    """

    def __init__(self, model: str, dtype: torch.dtype = torch.float64) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        self._dtype = dtype
        self.experts: dict[str, dict[str, Factors]] = {}

    def add(self, expert_id: str, folder: Path) -> None:
        """Read an expert from a PEFT folder."""
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
        layers: dict[str, Factors] = {}
        for name, a in tensors.items():
            module, found, _ = name.removeprefix("base_model.model.").partition(".lora_A.")
            if found:
                b = tensors[name.replace("lora_A", "lora_B")]
                root = len(a) ** 0.5 if config.get("use_rslora") else len(a)
                vector = torch.from_numpy(top_right_singular_vector(a.float().numpy(), b.float().numpy()))
                a, b, vector = (tensor.to(self._dtype) for tensor in (a, b, vector))
                layers[module] = Factors(a, b, config["lora_alpha"] / root, vector)
        self.experts[expert_id] = layers

    def logprobs(self, recipe: Recipe, tokens: Sequence[int]) -> torch.Tensor:
        """Log probabilities of the next token after every token, shape (num_tokens, vocabulary)."""
        return self.decided(recipe, tokens, ())[0]

    def logprobs_like(
        self, recipe: Recipe, tokens: Sequence[int], continued: torch.Tensor, atol: float
    ) -> torch.Tensor:
        """As `logprobs`, a gate's ties decided as the log probabilities of the last tokens say.

        Each token may see its own decisions: a request that was preempted computes its past twice.

        Args:
            recipe: What to compute.
            tokens: Prompt and continuation.
            continued: What an engine gave for the continuation, shape (num_continued,).
            atol: Where all of them are as near as this, no tie is looked at.
        """
        steps = torch.arange(len(tokens) - 1 - len(continued), len(tokens) - 1)
        ends = torch.tensor(tokens[-len(continued) :])

        def errors(rows: torch.Tensor) -> torch.Tensor:
            return (rows[steps, ends] - continued).abs()

        swaps: tuple[Tie, ...] = ()
        rows, ties = self.decided(recipe, tokens, swaps)
        while errors(rows).max() > atol and len(swaps) < MAX_SWAPS and set(ties) - set(swaps):
            tried = []
            for tie in set(ties) - set(swaps):
                other, its_ties = self.decided(recipe, tokens, (*swaps, tie))
                nearer = errors(other) < errors(rows)
                mixed = rows.clone()
                mixed[steps[nearer]] = other[steps[nearer]]
                tried.append((float(errors(mixed).sum()), mixed, its_ties, tie))
            _, rows, ties, tie = min(tried, key=lambda one: one[0])
            swaps = (*swaps, tie)
        return rows

    @torch.inference_mode()
    def decided(self, recipe: Recipe, tokens: Sequence[int], swaps: Collection[Tie]) -> tuple[torch.Tensor, list[Tie]]:
        """Log probabilities with some ties decided the other way, and all ties that were met."""
        ties: list[Tie] = []
        handles = [
            layer.register_forward_hook(self._hook(recipe, name, swaps, ties))
            for name, layer in self.model.named_modules()
            if any(name in layers for layers in self.experts.values())
        ]
        try:
            logits = self.model(torch.tensor([list(tokens)])).logits[0].float()
        finally:
            for handle in handles:
                handle.remove()
        return torch.log_softmax(logits, dim=-1), ties

    def _hook(
        self, recipe: Recipe, name: str, swaps: Collection[Tie], ties: list[Tie]
    ) -> Callable[[Any, Any, torch.Tensor], torch.Tensor]:
        def add(_layer: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
            (x,) = inputs
            match recipe:
                case Base():
                    return output
                case Single(expert):
                    return output + self._weighted({expert: 1.0}, name, x)
                case Mix(weights, "output"):
                    return output + self._weighted(dict(weights), name, x)
                case Mix(weights):
                    return output + self._merged(dict(weights), name, x)
                case Gate():
                    return output + self._gated(recipe, name, x, swaps, ties)
            raise ValueError(f"no formula for {recipe}")

        return add

    def _weighted(self, weights: dict[str, float], name: str, x: torch.Tensor) -> torch.Tensor | float:
        total: torch.Tensor | float = 0.0
        for expert, weight in weights.items():
            if (f := self.experts[expert].get(name)) is not None:
                total = total + weight * f.scaling * (x @ f.a.T @ f.b.T)
        return total

    def _merged(self, weights: dict[str, float], name: str, x: torch.Tensor) -> torch.Tensor | float:
        """(Σ w B) (Σ w A) x, with the scaling on B, shorter ranks filled with zeros."""
        chosen = [(w, f) for expert, w in weights.items() if (f := self.experts[expert].get(name)) is not None]
        if not chosen:
            return 0.0
        rank = max(len(f.a) for _, f in chosen)
        pad = torch.nn.functional.pad
        a = torch.stack([w * pad(f.a, (0, 0, 0, rank - len(f.a))) for w, f in chosen]).sum(dim=0)
        b = torch.stack([w * pad(f.b * f.scaling, (0, rank - f.b.shape[1])) for w, f in chosen]).sum(dim=0)
        return x @ a.T @ b.T

    def _gated(
        self, gate: Gate, name: str, x: torch.Tensor, swaps: Collection[Tie], ties: list[Tie]
    ) -> torch.Tensor | float:
        chosen = [f for expert in gate.experts if (f := self.experts[expert].get(name)) is not None]
        if not chosen:
            return 0.0
        scores = (x @ torch.stack([f.vector for f in chosen]).T).abs()
        if gate.kind == "uniform":
            scores = torch.zeros_like(scores)
        k = min(gate.k, len(chosen))
        values, order = scores.sort(dim=-1, descending=True)
        if k < len(chosen):
            gap = (values[0, :, k - 1] - values[0, :, k]) / x[0].square().mean(dim=-1).sqrt()
            ties += [Tie(name, position) for position in (gap < TIE).nonzero()[:, 0].tolist()]
            for position in (tie.position for tie in swaps if tie.module == name):
                order[0, position, [k - 1, k]] = order[0, position, [k, k - 1]]
        kept = order[..., :k]
        hidden = torch.full_like(scores, float("-inf")).scatter(-1, kept, scores.gather(-1, kept))
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
