"""A recipe as the arithmetic needs it: its experts, and their weights or their gate."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from server.engine.recipes import Gate, Mix, Recipe, RecipeError, Single, parse

FIXED = "fixed"
"""Kind of the gate of a mix with ``agg=ab``: its weights are those of the plan, the same for every token."""

_FORGET = 1 << 52
"""A LoRA id of this value plus an expert's version, 32 bits, asks the worker to forget the expert."""


class RecipeRefused(Exception):
    """A recipe cannot be executed; the message tells the caller why."""


@dataclass(frozen=True, slots=True)
class GateSpec:
    """How a gate weights its experts; the attributes are those of `server.engine.recipes.Gate`."""

    kind: str
    k: int
    temperature: float
    aggregation: Literal["output", "ab"]


@dataclass(frozen=True, slots=True)
class RecipePlan:
    """What is executed for every token of a request.

    Attributes:
        experts: Ids of distinct experts.
        weights: One weight for each expert; all 1 under a gate, except for a ``fixed`` one.
        gate: How weights are computed for each token and module; None if they are constant.
    """

    experts: tuple[str, ...]
    weights: tuple[float, ...]
    gate: GateSpec | None = None


def forgetting_id(expert_id: str) -> int:
    """Return the LoRA id whose removal makes the worker forget an expert, whichever recipes loaded it."""
    return _FORGET + int(expert_id.rpartition("@")[2], 16)


def forgotten_version(lora_int_id: int) -> str | None:
    """Return the suffix of the ids of experts to forget, or None if the LoRA id belongs to a recipe."""
    return f"@{lora_int_id - _FORGET:08x}" if lora_int_id >= _FORGET else None


def plan_of(recipe: Recipe) -> RecipePlan:
    """Return the plan of a recipe.

    Raises:
        RecipeRefused: The recipe uses no experts, or the plugin cannot execute it.
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
            raise RecipeRefused(f"{str(recipe)[:80]!r} cannot be executed: it is not an expert, mix or gate.")


def plan_of_request(lora_name: str, lora_path: str) -> RecipePlan:
    """Return the plan of a LoRARequest.

    The text of the recipe is the request's path, unless that is an absolute path; then it is the name. A request
    without a recipe (``--lora-modules``, warm-up) is a single expert.
    """
    try:
        return plan_of(parse(lora_name if os.path.isabs(lora_path) else lora_path))
    except (RecipeError, RecipeRefused):
        return RecipePlan((lora_name,), (1.0,))
