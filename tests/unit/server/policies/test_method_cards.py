"""What people read about routing methods, and the commands that supply what a method needs."""

from __future__ import annotations

from typing import get_args

import pytest

from routers.base import Need
from routers.errors import UnknownRouter
from routers.fitting import LACKING
from server.policies.method_cards import SUPPLIED_BY, describe_methods, with_command


def test_every_need_has_words_and_a_command() -> None:
    assert SUPPLIED_BY.keys() == LACKING.keys() == set(get_args(Need))


def test_a_sentence_gets_the_command_of_its_need() -> None:
    assert with_command("There is none", "scores") == "There is none. Supply it with: moergate score --tasks DIR"
    assert with_command("The budget is too small", "") == "The budget is too small"


def test_methods_are_described_with_their_options() -> None:
    (found,) = describe_methods(["best_single"])
    assert (found["name"], found["card"]["needs"]) == ("best_single", ("scores",))
    assert all(option.keys() == {"default", "description"} for option in found["options"].values())
    names = [method["name"] for method in describe_methods()]
    assert len(names) == len(set(names)) >= 25
    with pytest.raises(UnknownRouter, match="knn"):
        describe_methods(["knm"])
