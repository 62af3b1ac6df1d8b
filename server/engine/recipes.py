"""The recipe language: the short text that tells the engine what to execute.

A recipe is used as the LoRA name between gateway and engine, so it is its own cache key and every replica can execute
it without being told first. This module is imported by the vLLM plugin and therefore imports nothing of the gateway.

Today the language has two forms; mixes, gates and ensembles are part of its grammar later and are refused by name::

    base              the base model
    sql@1f3a9c02      one expert in one immutable version (first 8 hex digits of its content hash)
"""

from __future__ import annotations

import re
from dataclasses import dataclass

EXPERT_ID = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}@[0-9a-f]{8}")
_NOT_YET = ("mix(", "gate(", "ensemble(", "set:")


class RecipeError(ValueError):
    """A text is not a recipe; says at which position and why."""

    def __init__(self, text: str, position: int, reason: str) -> None:
        shown = text if len(text) <= 80 else text[:77] + "..."
        super().__init__(f"{shown!r} is not a recipe: at position {position}: {reason}")
        self.position = position
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Base:
    """The base model, no expert."""

    def __str__(self) -> str:
        return "base"


@dataclass(frozen=True, slots=True)
class Single:
    """One expert."""

    expert_id: str

    def __str__(self) -> str:
        return self.expert_id


Recipe = Base | Single


def parse(text: str) -> Recipe:
    """Read a recipe; total: any text gives a recipe or a `RecipeError`."""
    if text == "base":
        return Base()
    for prefix in _NOT_YET:
        if text.startswith(prefix):
            raise RecipeError(text, 0, f"{prefix.rstrip('(:')} recipes are not executed yet")
    if EXPERT_ID.fullmatch(text):
        return Single(text)
    match = EXPERT_ID.match(text)
    if match:
        raise RecipeError(text, match.end(), "an expert id ends here, but the text goes on")
    return _explain_bad_id(text)


def _explain_bad_id(text: str) -> Recipe:
    name, separator, version = text.partition("@")
    for position, character in enumerate(name):
        if not re.fullmatch(r"[a-z0-9_.-]", character):
            raise RecipeError(text, position, f"{character!r} cannot stand in an expert's name")
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,62}", name):
        raise RecipeError(text, 0, "an expert's name has 1 to 63 characters and begins with a letter or digit")
    if not separator:
        raise RecipeError(text, len(name), "an expert needs its version: name@ and 8 hex digits")
    raise RecipeError(text, len(name) + 1, f"{version[:16]!r} is not a version: 8 hex digits are expected")
