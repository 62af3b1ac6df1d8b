"""Names of experts: which are allowed, how `name@sha8` is parsed, and which names resemble a misspelt one.

A name appears in URLs, file names, logs, metrics and the recipe language. So it is short, ASCII, lower case, and never
a word of the recipe language.
"""

from __future__ import annotations

import bisect
import difflib
from collections.abc import Iterable, Sequence

from adapters_registry.disk.layout import EXPERT_NAME, EXPERT_VERSION
from adapters_registry.errors import Problem, quote

MAX_NAME_CHARS = 63

RESERVED_NAMES = frozenset(
    {"all", "any", "auto", "base", "default", "ensemble", "expert", "experts", "gate", "mix", "none", "null"}
    | {"policies", "policy", "recipe", "router", "set"}
)
"""Words of the recipe language and of `model`; an expert of such a name would be ambiguous."""

_NEIGHBOURS = 16


def check_name(name: str) -> Problem | None:
    """Return what is wrong with a new expert's name, or None."""
    if name in RESERVED_NAMES:
        return Problem("name", f"{quote(name)} is a reserved word", "Choose another name, such as that of a task.")
    if EXPERT_NAME.fullmatch(name) is None or ".." in name:
        return Problem(
            "name",
            f"{quote(name)} is not a valid name",
            f"Use 1 to {MAX_NAME_CHARS} of a-z, 0-9, '_', '-' and '.', beginning with a letter or digit, without '..'.",
        )
    return None


def split_expert_id(reference: str) -> tuple[str, str | None]:
    """Split `name@sha8` into (name, sha8) and `name` into (name, None). Other text comes back as (text, None)."""
    name, separator, version = reference.rpartition("@")
    if separator and EXPERT_VERSION.fullmatch(version):
        return name, version
    return reference, None


class KnownNames:
    """A set of names that finds which of them a mistyped name may mean.

    A mistyped name usually begins or ends correctly. So it is compared only with the `_NEIGHBOURS` names before and
    after it in alphabetical order, of the names and of the reversed names. The cost does not grow with the number of
    names, so a caller who guesses names cannot make the gateway slow.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._forwards = sorted(set(names))
        self._backwards = sorted(name[::-1] for name in self._forwards)

    def nearest(self, name: str, limit: int = 3) -> tuple[str, ...]:
        """Return up to `limit` names that resemble this one, best first."""
        wanted = name[:MAX_NAME_CHARS].lower()
        near = {*_around(self._forwards, wanted), *(found[::-1] for found in _around(self._backwards, wanted[::-1]))}
        return tuple(difflib.get_close_matches(wanted, sorted(near), n=limit, cutoff=0.5))


def nearest(name: str, names: Iterable[str], limit: int = 3) -> tuple[str, ...]:
    """Return up to `limit` of `names` that resemble `name`, best first; for a single question (see `KnownNames`)."""
    return KnownNames(names).nearest(name, limit)


def _around(ordered: Sequence[str], name: str) -> Sequence[str]:
    place = bisect.bisect_left(ordered, name)
    return ordered[max(0, place - _NEIGHBOURS) : place + _NEIGHBOURS]
