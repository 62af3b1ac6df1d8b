"""From a recipe's text to what the arithmetic needs: which experts, and their weights or their gate."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from server.engine.recipes import Gate, Mix, Recipe, RecipeError, Single, parse

FIXED = "fixed"
"""The gate of a mix whose A and B are added up each by itself: its weights are the plan's, whatever the token."""


_FORGET = 1 << 52
"""A LoRA number from here on asks the worker to forget an expert; its version, 32 bits, is added."""


class RecipeRefused(Exception):
    """A recipe cannot be executed; the text says why, for the caller."""


@dataclass(frozen=True, slots=True)
class GateSpec:
    """How a gate weights its experts; see `server.engine.recipes.Gate`."""

    kind: str
    k: int
    temperature: float
    aggregation: Literal["output", "ab"]


@dataclass(frozen=True, slots=True)
class RecipePlan:
    """What is executed for every token of a request.

    Attributes:
        experts: Ids, without repetition.
        weights: One for each expert; all 1 under a gate, which multiplies its own, unless that is ``fixed``.
        gate: How weights are found for each token and module, or None for constant ones.
    """

    experts: tuple[str, ...]
    weights: tuple[float, ...]
    gate: GateSpec | None = None


def forgetting_id(expert_id: str) -> int:
    """What to have vLLM remove, so that the worker forgets an expert whatever recipes it was loaded for."""
    return _FORGET + int(expert_id.rpartition("@")[2], 16)


def forgotten_version(lora_int_id: int) -> str | None:
    """The end of the ids of the experts that are to be forgotten, or None if the number is a recipe's."""
    return f"@{lora_int_id - _FORGET:08x}" if lora_int_id >= _FORGET else None


def plan_of(recipe: Recipe) -> RecipePlan:
    """The plan of a recipe that uses experts.

    Raises:
        RecipeRefused: It uses none, or cannot be executed by this plugin.
    """
    match recipe:
        case Single(expert_id):
            return RecipePlan((expert_id,), (1.0,))
        case Mix(weights, aggregation):
            fixed = GateSpec(FIXED, len(weights), 1.0, "ab") if aggregation == "ab" else None
            return RecipePlan(tuple(e for e, _ in weights), tuple(w for _, w in weights), fixed)
        case Gate(kind, experts, k, temperature, aggregation):
            return RecipePlan(experts, (1.0,) * len(experts), GateSpec(kind, k, temperature, aggregation))
        case _:
            raise RecipeRefused(f"{str(recipe)[:80]!r} cannot be executed: it is no expert, mix or gate.")


def plan_of_request(lora_name: str, lora_path: str) -> RecipePlan:
    """The plan that a LoRARequest stands for.

    The recipe's text is its path if that is no path, else its name; one without a recipe (``--lora-modules``, warm-up)
    is an expert of its own.
    """
    try:
        return plan_of(parse(lora_name if os.path.isabs(lora_path) else lora_path))
    except (RecipeError, RecipeRefused):
        return RecipePlan((lora_name,), (1.0,))
