"""Which modules a PEFT config selects, by PEFT's rules, with patterns that may be hostile.

PEFT accepts regular expressions in `target_modules`, `exclude_modules`, `rank_pattern` and `alpha_pattern`. A hostile
one can keep Python's matcher busy for years while it holds the interpreter lock. So patterns other than plain names are
matched in a child process with limited memory and a few seconds of time.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from adapters_registry.errors import quote

Value = TypeVar("Value")

MAX_PATTERN_CHARS = 8192
MAX_MATCHES = 2_000_000
_TIMEOUT_S = 5.0
_PLAIN = re.compile(r"\^?(?:\w|\.|\\\.)+\$?", re.ASCII)
_LAYER_INDEX = re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")

_CHILD = """
import json, re, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
jobs = json.load(sys.stdin)
found = []
for pattern, names in jobs:
    try:
        compiled = re.compile(pattern)
        found.append([name for name in names if compiled.fullmatch(name)])
    except Exception:
        found.append(None)
json.dump(found, sys.stdout)
"""


class PatternError(Exception):
    """A pattern is invalid, too long or too slow. The text names the pattern."""


@dataclass(frozen=True, slots=True)
class TargetRule:
    """The parts of a PEFT config that select modules.

    `targets` is a list of names, one regular expression, or "all-linear"; so is `excluded` (None for nothing).
    `layers` restricts the selection to layer indices; `layer_names` are the plain names of the indexed module lists.
    """

    targets: tuple[str, ...] | str
    excluded: tuple[str, ...] | str = ()
    layers: frozenset[int] | None = None
    layer_names: tuple[str, ...] = ()


def select_modules(rule: TargetRule, modules: Iterable[str]) -> frozenset[str]:
    """Return the modules that PEFT would adapt. Raises PatternError."""
    names = list(modules)
    if isinstance(rule.targets, str):
        if rule.targets.lower() == "all-linear":
            selected = set(names)
        else:
            selected = set(_full_matches([rule.targets], names)[0])
    else:
        selected = _named(names, rule.targets)
    if rule.layers is not None:
        selected = {name for name in selected if _layer_of(name, rule.layer_names) in rule.layers}
    if isinstance(rule.excluded, str):
        selected -= set(_full_matches([rule.excluded], names)[0])
    else:
        selected -= _named(selected, rule.excluded)
    return frozenset(selected)


def resolve_patterns(patterns: Mapping[str, Value], default: Value, modules: Iterable[str]) -> dict[str, Value]:
    """Return PEFT's value for each module: the first pattern that matches a dotted suffix wins. Raises PatternError."""
    names = list(modules)
    values = dict.fromkeys(names, default)
    keys = list(patterns)
    for key, matched in reversed(list(zip(keys, _full_matches(keys, names, suffix=True), strict=True))):
        values.update(dict.fromkeys(matched, patterns[key]))
    return values


def _named(modules: Iterable[str], names: Sequence[str]) -> set[str]:
    """Return the modules whose path, or a dotted suffix of the path, is among `names`."""
    wanted = set(names)
    return {module for module in modules if not wanted.isdisjoint(_suffixes(module))}


def _suffixes(module: str) -> Iterator[str]:
    """Yield `a.b.c`, `b.c`, `c`."""
    while True:
        yield module
        _, dot, module = module.partition(".")
        if not dot:
            return


def _layer_of(module: str, layer_names: Sequence[str]) -> int | None:
    if not layer_names:
        match = _LAYER_INDEX.match(module)
        return int(match["idx"]) if match else None
    for name in layer_names:
        if match := re.match(rf"(?:^|.*?\.){re.escape(name)}\.(?P<idx>\d+)\.", module):
            return int(match["idx"])
    return None


def _full_matches(patterns: Sequence[str], names: Sequence[str], *, suffix: bool = False) -> list[list[str]]:
    """Return, for each pattern, the names that it matches fully, or (`suffix`) by a dotted suffix."""
    if len(patterns) * len(names) > MAX_MATCHES:
        raise PatternError(f"there are too many patterns ({len(patterns)}) for {len(names)} modules")
    for pattern in patterns:
        if len(pattern) > MAX_PATTERN_CHARS:
            raise PatternError(f"a pattern has {len(pattern)} characters, more than {MAX_PATTERN_CHARS}")
    wrapped = {pattern: rf"(?:.*\.)?(?:{pattern})" if suffix else pattern for pattern in patterns}
    matches = {pattern: _match_plain(wrapped[pattern], names) for pattern in patterns if _PLAIN.fullmatch(pattern)}
    others = [pattern for pattern in wrapped if pattern not in matches]
    if others:
        found = _match_in_child([wrapped[pattern] for pattern in others], names)
        for pattern, result in zip(others, found, strict=True):
            if result is None:
                raise PatternError(f"{quote(pattern)} is not a valid regular expression")
            matches[pattern] = result
    return [matches[pattern] for pattern in patterns]


def _match_plain(pattern: str, names: Sequence[str]) -> list[str]:
    """Match a pattern of literals and dots, in linear time."""
    compiled = re.compile(pattern)
    return [name for name in names if compiled.fullmatch(name)]


def _match_in_child(patterns: Sequence[str], names: Sequence[str]) -> list[list[str] | None]:
    """Return the matched names of each pattern; None for a pattern that does not compile."""
    jobs = json.dumps([[pattern, list(names)] for pattern in patterns])
    try:
        done = subprocess.run(  # noqa: S603 - a fixed program; the patterns are its data
            [sys.executable, "-I", "-S", "-c", _CHILD],
            input=jobs.encode(),
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise PatternError(f"matching {quote(patterns[0])} takes too long") from None
    except (subprocess.CalledProcessError, OSError) as error:
        raise PatternError(f"matching {quote(patterns[0])} failed ({type(error).__name__})") from None
    results: list[list[str] | None] = json.loads(done.stdout)
    return results
