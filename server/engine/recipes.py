"""The recipe language: the short text that says what the engine executes.

The gateway sends a recipe as the LoRA name, so a recipe is its own cache key and every replica can execute it without
a load call. The vLLM plugin imports this module, so it imports nothing of the gateway::

    base                                                        the base model
    sql@1f3a9c02                                                one expert in one immutable version
    mix(math@77ab01cd*0.38,sql@1f3a9c02*0.62)                   Σ weight · expert, constant for the request
    mix(math@77ab01cd*0.9,sql@1f3a9c02*-0.2;agg=ab)             (Σ weight · B)(Σ weight · A), LoraHub's merge
    gate(arrow,k=2,t=1;math@77ab01cd,sql@1f3a9c02)              weights per token and module, by a gate
    set:9c0f4b1e22d07a35                                        a long recipe by the hash of its text

Texts are canonical: experts are sorted, weights have at most two decimals, zero weights and a default ``agg`` are left
out, and options have one order. So equal recipes are equal texts. The parser accepts any order and more decimals, and
it is total: every text gives a recipe or a `RecipeError` with a position. A caller may omit versions (`parse_asked`);
`bind` adds them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NoReturn

from adapters_registry.disk.layout import EXPERT_NAME, EXPERT_VERSION, RECIPE_DIGEST

MAX_EXPERTS = 64
MAX_WEIGHT = 100.0
MAX_TEXT_CHARS = 8192
LONG_TEXT_CHARS = 512
"""A longer text is sent to the engine by its hash."""

GATE_KINDS = ("arrow", "uniform")
DEFAULT_K = 4

_NUMBER = re.compile(r"[0-9]{1,6}(\.[0-9]{1,12})?")
_WORD = re.compile(r"[a-z][a-z0-9_]{0,30}")
_CALL = re.compile(rf"{_WORD.pattern}\(")


class RecipeError(ValueError):
    """A text is not a recipe; the message says at which position and why."""

    def __init__(self, text: str, position: int, reason: str) -> None:
        shown = text if len(text) <= 80 else text[:77] + "..."
        super().__init__(f"{shown!r} is not a recipe: at position {position}: {reason}")
        self.position = position
        self.reason = reason


Aggregation = Literal["output", "ab"]


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


@dataclass(frozen=True, slots=True)
class Mix:
    """Experts with constant weights; `mix_of` makes the canonical form.

    Attributes:
        weights: Expert and weight, sorted by expert; a negative weight subtracts an expert's effect.
        aggregation: ``output`` adds up the experts' updates; ``ab`` adds up their A and their B, then multiplies.
    """

    weights: tuple[tuple[str, float], ...]
    aggregation: Aggregation = "output"

    def __str__(self) -> str:
        extra = "" if self.aggregation == "output" else f";agg={self.aggregation}"
        return f"mix({_weights_text(self.weights)}{extra})"


@dataclass(frozen=True, slots=True)
class Gate:
    """Experts weighted per token and module; `gate_of` makes the canonical form.

    Attributes:
        kind: One of `GATE_KINDS`.
        experts: Sorted ids.
        k: Number of experts that each token may use in each module.
        temperature: Divides the scores before the softmax.
        aggregation: ``output`` weights the experts' outputs; ``ab`` averages their A and their B separately.
    """

    kind: str
    experts: tuple[str, ...]
    k: int
    temperature: float = 1.0
    aggregation: Aggregation = "output"

    def __str__(self) -> str:
        extra = "" if self.aggregation == "output" else f",agg={self.aggregation}"
        return f"gate({self.kind},k={self.k},t={_number(self.temperature)}{extra};{','.join(self.experts)})"


@dataclass(frozen=True, slots=True)
class SetRef:
    """A recipe whose text is in the store under its hash."""

    digest: str

    def __str__(self) -> str:
        return f"set:{self.digest}"


Recipe = Base | Single | Mix | Gate | SetRef


def experts_of(recipe: Recipe) -> tuple[str, ...]:
    """Return the ids of the experts that a recipe uses; those of a `SetRef` are unknown."""
    match recipe:
        case Single(expert_id):
            return (expert_id,)
        case Mix(weights):
            return tuple(expert_id for expert_id, _ in weights)
        case Gate():
            return recipe.experts
        case Base() | SetRef():
            return ()


def mix_of(weights: Mapping[str, float], aggregation: Aggregation = "output") -> Recipe:
    """Return the canonical recipe of a weighted sum; a single expert with weight 1 becomes that expert.

    Raises:
        ValueError: A weight is not finite or too large, all weights round to zero, or there are too many experts.
    """
    rounded = _rounded(weights)
    if len(rounded) == 1 and rounded[0][1] == 1.0:
        return Single(rounded[0][0])
    return Mix(rounded, aggregation)


def gate_of(
    kind: str,
    experts: Iterable[str],
    k: int | None = None,
    temperature: float = 1.0,
    aggregation: Aggregation = "output",
) -> Recipe:
    """Return the canonical recipe of a gate; a gate over one expert becomes that expert, whose weight is always 1.

    Raises:
        ValueError: An option is out of range, an expert is duplicated, or there are too many experts.
    """
    listed = sorted(experts)
    if kind not in GATE_KINDS:
        raise ValueError(f"unknown gate {kind!r}; use {' or '.join(GATE_KINDS)}")
    if not listed:
        raise ValueError("a gate needs at least one expert")
    if len(listed) > MAX_EXPERTS:
        raise ValueError(f"{len(listed)} experts are too many; use at most {MAX_EXPERTS}")
    if len(set(listed)) < len(listed):
        raise ValueError("duplicate expert")
    if kind == "uniform" and k not in (None, len(listed)):
        raise ValueError(f"gate(uniform) weights all of its {len(listed)} experts; leave k={k} out")
    if k is None:
        k = len(listed) if kind == "uniform" else min(DEFAULT_K, len(listed))
    if not 1 <= k <= len(listed):
        raise ValueError(f"k={k} must be from 1 to the number of experts, {len(listed)}")
    temperature = round(temperature, 4)
    if not 0.0 < temperature <= MAX_WEIGHT:
        raise ValueError(f"t={_number(temperature)} must be above 0 and at most {MAX_WEIGHT:g}")
    if len(listed) == 1:
        return Single(listed[0])
    return Gate(kind, tuple(listed), k, temperature, aggregation)


def parse(text: str) -> Recipe:
    """Parse a recipe in which every expert has a version; any text gives a recipe or a `RecipeError`."""
    return _Reader(text, versions=True).recipe()


def parse_asked(text: str) -> Recipe:
    """Parse a recipe as a caller writes it: experts may have no version."""
    return _Reader(text, versions=False).recipe()


def bind(recipe: Recipe, id_of: Callable[[str], str]) -> Recipe:
    """Return the recipe with every expert replaced by `id_of(expert)`, in canonical form.

    Raises:
        ValueError: Two names mean the same expert. Errors of `id_of` pass through.
    """
    match recipe:
        case Single(expert_id):
            return Single(id_of(expert_id))
        case Mix(weights, aggregation):
            return mix_of(_bound(weights, id_of), aggregation)
        case Gate():
            ids = [id_of(expert) for expert in recipe.experts]
            if len(set(ids)) < len(ids):
                raise ValueError("duplicate expert")
            return replace(recipe, experts=tuple(sorted(ids)))
        case Base() | SetRef():
            return recipe


def _bound(weights: Iterable[tuple[str, float]], id_of: Callable[[str], str]) -> dict[str, float]:
    bound: dict[str, float] = {}
    for expert, weight in weights:
        expert_id = id_of(expert)
        if expert_id in bound:
            raise ValueError("duplicate expert")
        bound[expert_id] = weight
    return bound


def _rounded(weights: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    if len(weights) > MAX_EXPERTS:
        raise ValueError(f"{len(weights)} experts are too many; use at most {MAX_EXPERTS}")
    for expert, weight in weights.items():
        if not -MAX_WEIGHT <= weight <= MAX_WEIGHT:
            raise ValueError(f"the weight of {expert}, {weight:g}, must be from {-MAX_WEIGHT:g} to {MAX_WEIGHT:g}")
    kept = tuple((expert, round(weight, 2)) for expert, weight in sorted(weights.items()) if round(weight, 2) != 0)
    if not kept:
        raise ValueError("every weight rounds to zero at two decimals")
    return kept


def _weights_text(weights: Iterable[tuple[str, float]]) -> str:
    return ",".join(f"{expert}*{_number(weight)}" for expert, weight in weights)


def _number(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".")


class _Reader:
    """Parses a text from left to right."""

    def __init__(self, text: str, *, versions: bool) -> None:
        self._text = text
        self._at = 0
        self._versions = versions

    def recipe(self) -> Recipe:
        if len(self._text) > MAX_TEXT_CHARS:
            self._at = MAX_TEXT_CHARS
            self._fail(f"a recipe has at most {MAX_TEXT_CHARS} characters")
        if self._text == "base":
            return Base()
        if self._take("mix("):
            return self._made(self._mix)
        if self._take("gate("):
            return self._made(self._gate)
        if self._take("set:"):
            digest = self._match(RECIPE_DIGEST, "the name of a set is 16 hex digits")
            self._end()
            return SetRef(digest)
        if (call := _CALL.match(self._text)) is not None:
            self._fail(f"unknown recipe {call.group()}...); use mix(...) or gate(...)")
        expert = self._expert()
        if self._at < len(self._text):
            self._fail("an expert ends here, but the text continues")
        return Single(expert)

    def _made(self, make: Callable[[], Recipe]) -> Recipe:
        started = self._at
        try:
            return make()
        except RecipeError:
            raise
        except ValueError as error:
            self._at = started
            self._fail(str(error))

    def _mix(self) -> Recipe:
        weights = self._weights()
        aggregation: Aggregation = "output"
        if self._take(";"):
            self._expect("agg=", "expected the option agg=")
            aggregation = self._aggregation()
        self._close()
        return mix_of(weights, aggregation)

    def _aggregation(self) -> Aggregation:
        word = self._match(_WORD, "agg must be output or ab")
        if word not in ("output", "ab"):
            self._at -= len(word)
            self._fail("agg must be output or ab")
        return "ab" if word == "ab" else "output"

    def _weights(self) -> dict[str, float]:
        weights: dict[str, float] = {}
        while True:
            started = self._at
            expert = self._expert()
            if expert in weights:
                self._at = started
                self._fail(f"duplicate expert {expert}")
            self._expect("*", "expected a weight, as in name*0.5")
            sign = -1.0 if self._take("-") else 1.0
            weights[expert] = sign * float(self._match(_NUMBER, "a weight must be a number such as 0.5"))
            if not self._take(","):
                return weights

    def _gate(self) -> Recipe:
        kind = self._match(_WORD, f"expected the kind of gate: {' or '.join(GATE_KINDS)}")
        k: int | None = None
        temperature = 1.0
        aggregation: Aggregation = "output"
        seen: set[str] = set()
        while self._take(","):
            started = self._at
            name = self._match(_WORD, "expected an option: k=, t= or agg=")
            if name in seen or name not in ("k", "t", "agg"):
                self._at = started
                what = f"duplicate option {name!r}" if name in seen else f"unknown option {name!r}; use k, t or agg"
                self._fail(what)
            seen.add(name)
            self._expect("=", "expected the option's value, as in k=2")
            if name == "k":
                k = int(self._match(re.compile("[0-9]{1,3}"), "k must be a whole number"))
            elif name == "t":
                temperature = float(self._match(_NUMBER, "t must be a positive number"))
            else:
                aggregation = self._aggregation()
        self._expect(";", "expected ';' and the experts")
        experts = [self._expert()]
        while self._take(","):
            experts.append(self._expert())
        self._close()
        return gate_of(kind, experts, k, temperature, aggregation)

    def _expert(self) -> str:
        started = self._at
        match = EXPERT_NAME.match(self._text, started)
        if match is None or (match.end() < len(self._text) and self._text[match.end()] not in "@*,;)"):
            self._explain_bad_name(started if match is None else match.end(), started)
        self._at = match.end() if match else started
        if self._take("@"):
            self._match(EXPERT_VERSION, "is not a version; expected 8 hex digits", quoted=True)
        elif self._versions:
            self._fail("an expert needs a version: name@ and 8 hex digits")
        return self._text[started : self._at]

    def _explain_bad_name(self, at: int, started: int) -> NoReturn:
        self._at = at
        if at < len(self._text) and not re.match(r"[a-z0-9_.-]", self._text[at]):
            if at == started and self._text[at] in "*,;)@":
                self._fail("expected an expert")
            self._fail(f"{self._text[at]!r} is not allowed in an expert's name")
        self._at = started
        self._fail("an expert's name has 1 to 63 characters and begins with a letter or digit")

    def _close(self) -> None:
        self._expect(")", "expected ',' or ')'")
        self._end()

    def _end(self) -> None:
        if self._at < len(self._text):
            self._fail("the recipe ends here, but the text continues")

    def _take(self, token: str) -> bool:
        if self._text.startswith(token, self._at):
            self._at += len(token)
            return True
        return False

    def _expect(self, token: str, reason: str) -> None:
        if not self._take(token):
            self._fail(reason)

    def _match(self, pattern: re.Pattern[str], reason: str, *, quoted: bool = False) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            shown = f"{self._text[self._at : self._at + 16]!r} " if quoted else ""
            self._fail(shown + reason)
        self._at = match.end()
        return match.group()

    def _fail(self, reason: str) -> NoReturn:
        raise RecipeError(self._text, min(self._at, len(self._text)), reason)
