"""Routing methods in words: their cards and options, and the commands that supply what they need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from routers.registry import router_class, router_names

SUPPLIED_BY: Mapping[str, str] = {
    "examples": "moergate adapters add NAME FOLDER --examples-file FILE, or PUT /admin/adapters/NAME/examples",
    "descriptions": "moergate adapters add NAME FOLDER --description 'what it is good at'",
    "scores": "moergate score --tasks DIR",
    "losses": "moergate score --tasks DIR --losses",
    "samples": "moergate fit POLICY --router NAME --data FILE.jsonl",
    "engine": "moergate fit, while 'moergate serve' runs with an engine",
}
"""The command that supplies each `routers.base.Need`."""


def with_command(sentence: str, need: str) -> str:
    """Add the command that supplies a need to a sentence that says what is missing."""
    command = SUPPLIED_BY.get(need)
    return f"{sentence}. Supply it with: {command}" if command else sentence


def describe_methods(names: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """Return the name, card and options of these methods, or of all; raises `RouterError`."""
    found = []
    for name in names or router_names():
        method = router_class(name)
        options: dict[str, Any] = {
            option: {"default": field.get_default(call_default_factory=True), "description": field.description}
            for option, field in method.config_class.model_fields.items()
        }
        found.append({"name": name, "card": asdict(method.card), "options": options})
    return found
