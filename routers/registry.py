"""From router names to router classes, imported on demand.

A router is an entry point of the group `moergate.routers`, `name = "module:Class"`. This distribution declares its own
routers in pyproject.toml in the same way as third parties do.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from pydantic import ValidationError

from routers.base import MethodCard, Router, RouterConfig
from routers.errors import BadRouter, BadRouterConfig, UnknownRouter

GROUP = "moergate.routers"


def router_names() -> tuple[str, ...]:
    """Return the names of all registered routers, sorted; imports none of them."""
    return tuple(sorted({entry.name for entry in entry_points(group=GROUP)}))


@cache
def router_class(name: str) -> type[Router]:
    """Import and return the class of that name; raises `UnknownRouter` or `BadRouter`.

    Results are cached for the process (`router_class.cache_clear` empties the cache), because searching the entry
    points of all distributions takes at least ten milliseconds. Failures are not cached.
    """
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        near = difflib.get_close_matches(name, router_names(), n=3, cutoff=0.4)
        known = "did you mean " + " or ".join(near) if near else "known are: " + (", ".join(router_names()) or "none")
        raise UnknownRouter(f"there is no router {name!r}; {known}")
    if len({entry.value for entry in found}) > 1:
        raise BadRouter(f"several packages register a router {name!r}: " + ", ".join(sorted(map(_origin, found))))
    try:
        loaded = found[0].load()
    except Exception as error:
        raise BadRouter(f"router {name!r} ({_origin(found[0])}) cannot be imported: {error}") from error
    if lacks := _misfit(loaded):
        raise BadRouter(f"router {name!r} ({_origin(found[0])}) does not fit the router protocol: {lacks}")
    return cast("type[Router]", loaded)


def make_config(name: str, options: Mapping[str, Any]) -> RouterConfig:
    """Validate a router's options; raises `BadRouterConfig` with the option and the allowed values."""
    config_class = router_class(name).config_class
    try:
        return config_class.model_validate(dict(options))
    except ValidationError as error:
        allowed = ", ".join(sorted(config_class.model_fields)) or "none"
        problems = "; ".join(_explain(problem["loc"], problem["type"], problem["msg"]) for problem in error.errors())
        raise BadRouterConfig(f"router {name!r}: {problems} (its options are: {allowed})") from error


def _explain(where: tuple[int | str, ...], kind: str, message: str) -> str:
    option = ".".join(map(str, where)) or "options"
    return f"unknown option {option!r}" if kind == "extra_forbidden" else f"bad value for {option!r}: {message}"


def _misfit(loaded: Any) -> str:
    """Say what a class lacks to be a router; empty if it is one."""
    if not isinstance(loaded, type):
        return f"it is not a class but {type(loaded).__name__}"
    if not isinstance(getattr(loaded, "card", None), MethodCard):
        return "`card` is not a MethodCard"
    config_class = getattr(loaded, "config_class", None)
    if not (isinstance(config_class, type) and issubclass(config_class, RouterConfig)):
        return "`config_class` is not a subclass of RouterConfig"
    missing = [method for method in ("fit", "load", "route") if not callable(getattr(loaded, method, None))]
    return "it lacks " + ", ".join(missing) if missing else ""


def _origin(entry: EntryPoint) -> str:
    return f"{entry.value} of {entry.dist.name}" if entry.dist else entry.value
