"""The routing methods with their cards and options, as people and programs are shown them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from routers.registry import router_class, router_names


def describe_methods(names: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """Name, card and options of methods, all of them unless told otherwise; raises `RouterError`."""
    found = []
    for name in names or router_names():
        method = router_class(name)
        options: dict[str, Any] = {
            option: {"default": field.get_default(call_default_factory=True), "description": field.description}
            for option, field in method.config_class.model_fields.items()
        }
        found.append({"name": name, "card": asdict(method.card), "options": options})
    return found
