"""The arithmetic of probes; tests/e2e/test_lifecycle.py has them against a double, tests/engine against vLLM."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from server.experts.probes import NEUTRAL_PROMPTS, Distances, choose_prompts, distance, find_problems

FINE = Distances(base=0.5, noise=1e-6, repeat=1e-6, others={})


def test_the_distance_is_that_of_the_prompt_that_differs_most() -> None:
    assert distance([[1.0, 2.0], [0.0]], [[1.0, 2.0], [0.5]]) == 0.5
    assert distance([[1.0, 2.0]], [[2.0, 0.0]]) == 1.5
    assert distance([], []) == 0.0


@pytest.mark.parametrize("bad", [[[math.nan]], [[math.inf]], [[]], [[0.0, 1.0]]])
def test_what_cannot_be_compared_is_not_a_number(bad: list[list[float]]) -> None:
    assert math.isnan(distance([[0.0]], bad))


@pytest.mark.parametrize(
    ("changed", "near", "where"),
    [
        ({}, {}, None),
        ({}, {"other@00000000": 0.3}, None),
        ({"base": 0.0}, {}, "probe.effect"),
        ({"base": 9e-5}, {}, "probe.effect"),
        ({"base": 0.02, "noise": 0.01}, {}, "probe.effect"),
        ({"base": 0.04, "noise": 0.01, "repeat": 0.01}, {}, None),
        ({"repeat": 0.4}, {}, "probe.identity"),
        ({}, {"a@00000000": 0.3, "b@00000000": 0.0}, "probe.identity"),
        ({"noise": math.nan}, {}, "probe.finite"),
        ({}, {"a@00000000": math.nan}, "probe.finite"),
    ],
)
def test_what_is_rejected(changed: dict[str, Any], near: dict[str, float], where: str | None) -> None:
    found = find_problems(replace(FINE, **changed, others=near))
    assert [problem.where for problem in found] == ([where] if where else [])


def test_prompts_are_few_short_and_never_none() -> None:
    assert choose_prompts(()) == list(NEUTRAL_PROMPTS)
    assert choose_prompts(("word",)) == list(NEUTRAL_PROMPTS)
    chosen = choose_prompts(tuple(f"{i} " + "long " * 500 for i in range(100)))
    assert [text.split()[0] for text in chosen] == ["0", "49", "99"]
    assert all(len(text) <= 400 for text in chosen)
