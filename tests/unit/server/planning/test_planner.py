"""From a decision to the recipe that executes it."""

import pytest

from routers.base import Decision, GateChoice, WeightedExpert
from server.planning.planner import recipe_of

A, B, C = "a@00000000", "b@00000000", "c@00000000"
MANY = {f"e{number:03d}@{number:08x}": 0.1 + number / 1000 for number in range(100)}


@pytest.mark.parametrize(
    ("weights", "gate", "recipe"),
    [
        ({}, None, "base"),
        ({A: 1.0}, None, A),
        ({A: 0.3}, None, f"mix({A}*0.3)"),
        ({A: 0.9, B: -0.2}, GateChoice("fixed", aggregation="ab"), f"mix({A}*0.9,{B}*-0.2;agg=ab)"),
        ({B: 0.6, A: 0.3}, None, f"mix({A}*0.3,{B}*0.6)"),
        ({A: 0.001, B: 0.002}, None, "base"),
        ({B: 1.0, A: 1.0, C: 1.0}, GateChoice("arrow", 2), f"gate(arrow,k=2,t=1;{A},{B},{C})"),
        ({A: 1.0, B: 1.0}, GateChoice("arrow", 4, 0.5, "ab"), f"gate(arrow,k=2,t=0.5,agg=ab;{A},{B})"),
        ({A: 0.5, B: 0.5}, GateChoice("uniform", aggregation="ab"), f"gate(uniform,k=2,t=1,agg=ab;{A},{B})"),
        ({A: 1.0}, GateChoice("arrow", 4), A),
    ],
)
def test_decisions_become_recipes(weights: dict[str, float], gate: GateChoice | None, recipe: str) -> None:
    experts = tuple(WeightedExpert(expert, weight) for expert, weight in weights.items())
    assert str(recipe_of(Decision(experts, 0.5, gate=gate))) == recipe


def test_of_too_many_experts_the_heaviest_are_kept() -> None:
    recipe = str(recipe_of(Decision(tuple(WeightedExpert(e, w) for e, w in MANY.items()), 0.5)))
    assert recipe.count("@") == 64
    assert "e036@" in recipe
    assert "e035@" not in recipe
