"""Names of experts: what is allowed, how `name@sha8` is read, and which names are near a misspelt one.

A name appears in URLs, file names, logs, metrics and the recipe language, so it is short, ASCII and lower case, and
never a word of the recipe language.
"""

from __future__ import annotations

import bisect
import difflib
import re
from collections.abc import Iterable, Sequence

from adapters_registry.errors import Problem, quote

MAX_NAME_CHARS = 63
VERSION_CHARS = 8

RESERVED_NAMES = frozenset(
    {"all", "any", "auto", "base", "default", "ensemble", "expert", "experts", "gate", "mix", "none", "null"}
    | {"policies", "policy", "recipe", "router", "set"}
)
"""Words of the recipe language and of `model`, which a caller could not tell from an expert."""

_NEIGHBOURS = 16
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_VERSION = re.compile(r"[0-9a-f]{8}")


def check_name(name: str) -> Problem | None:
    """What is wrong with a new expert's name, or None."""
    if name in RESERVED_NAMES:
        return Problem("name", f"{quote(name)} is a reserved word", "Choose another name, such as a task's.")
    if _NAME.fullmatch(name) is None or ".." in name:
        return Problem(
            "name",
            f"{quote(name)} is not a valid name",
            f"Use 1 to {MAX_NAME_CHARS} of a-z, 0-9, '_', '-' and '.', beginning with a letter or digit, without '..'.",
        )
    return None


def split_expert_id(reference: str) -> tuple[str, str | None]:
    """`name@sha8` as (name, sha8); `name` as (name, None). Anything that is neither comes back as (reference, None)."""
    name, separator, version = reference.rpartition("@")
    if separator and _VERSION.fullmatch(version):
        return name, version
    return reference, None


class KnownNames:
    """Names, among which those are found that a mistyped one may have meant.

    A mistyped name usually has its beginning or its end right, so it is compared only with `_NEIGHBOURS` names on each
    side of where it would stand, in the order of the alphabet and in that of the reversed names: the cost does not grow
    with the number of names, and a caller who guesses cannot make it do so.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._forwards = sorted(set(names))
        self._backwards = sorted(name[::-1] for name in self._forwards)

    def nearest(self, name: str, limit: int = 3) -> tuple[str, ...]:
        """Up to `limit` names that look like this one, best first."""
        wanted = name[:MAX_NAME_CHARS].lower()
        near = {*_around(self._forwards, wanted), *(found[::-1] for found in _around(self._backwards, wanted[::-1]))}
        return tuple(difflib.get_close_matches(wanted, sorted(near), n=limit, cutoff=0.5))


def nearest(name: str, names: Iterable[str], limit: int = 3) -> tuple[str, ...]:
    """Up to `limit` of `names` that look like `name`, best first; for one question only, see `KnownNames`."""
    return KnownNames(names).nearest(name, limit)


def _around(ordered: Sequence[str], name: str) -> Sequence[str]:
    place = bisect.bisect_left(ordered, name)
    return ordered[max(0, place - _NEIGHBOURS) : place + _NEIGHBOURS]
